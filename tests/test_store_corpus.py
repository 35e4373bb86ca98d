"""Importers give every document, list what is none, and never drop a line in silence."""

import json
import sys
from pathlib import Path

import pytest
import zstandard

from tttnn.errors import MissingExtraError
from tttnn.store.corpus import iter_corpus, iter_folder, iter_jsonl, iter_parquet
from tttnn.store.document import Document
from tttnn.store.writer import write_store

GOOD = [{"text": f"text {i} é", "meta": {"pile_set_name": "Github", "n": i}} for i in range(100)]


def lines(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_jsonl_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD))
    corpus = iter_jsonl(path)
    first = list(corpus)
    assert first == list(corpus)
    assert first[3] == Document("text 3 é", {"pile_set_name": "Github", "n": 3})
    assert first[3].source == "Github"


@pytest.mark.parametrize("frames", [1, 2, 100])
def test_zst_may_hold_several_frames(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    data = lines(GOOD)
    size = len(data) // frames + 1
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00junk"
    path.write_bytes(skippable.join(zstandard.ZstdCompressor().compress(part) for part in parts))
    assert [document.text for document in iter_jsonl(path)] == [row["text"] for row in GOOD]


@pytest.mark.parametrize("cut", [1, 3, 10, 100])
def test_a_torn_zst_is_an_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(lines(GOOD))
    path.write_bytes(whole + whole[:-cut])
    with pytest.raises(ValueError, match="inside a zstd frame"):
        list(iter_jsonl(path))


def test_damaged_and_foreign_zst_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"no zstd at all" * 10)
    with pytest.raises(ValueError, match="not zstd that can be read"):
        list(iter_jsonl(path))
    whole = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(lines(GOOD)))
    whole[-2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="not zstd that can be read"):
        list(iter_jsonl(path))


BAD = {
    2: (b"{not json", "is not JSON"),
    3: (b"[1, 2]", "must be a JSON object, got list"),
    5: (b'{"meta": {}}', "has no field 'text'"),
    6: (b'{"text": 3}', "must be a string, got int"),
    7: (b'{"text": "\xff"}', "is not UTF-8"),
    8: (b'{"text": "\\ud800"}', "lone surrogate"),
    9: (b'{"text": "x", "meta": [1]}', "'meta' must be an object, got list"),
    10: (b'{"text": "x", "a": 1, "meta": {"a": 2}}', "both beside 'meta' and in it"),
    11: (b"[" * 100_000, "is"),
    12: (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", "is not JSON that can be read"),
}


def test_bad_lines_are_listed(tmp_path: Path) -> None:
    path, rejects = tmp_path / "a.jsonl", tmp_path / "rejects.jsonl"
    good = b'{"text": "fine"}'
    path.write_bytes(b"\r\n".join(BAD.get(number, (good, ""))[0] for number in range(1, 14)) + b"\n\n  \n")
    seen: list[tuple[int, str]] = []
    corpus = iter_jsonl(path, rejects=rejects, on_reject=lambda number, reason: seen.append((number, reason)))
    for _ in range(2):
        seen.clear()
        assert list(corpus) == [Document("fine")] * 3
        assert [tuple(row) for row in corpus.rejected] == seen
        assert [number for number, _ in seen] == list(BAD)
        for number, reason in seen:
            assert BAD[number][1] in reason
        rows = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [row["line"] for row in rows] == list(BAD)
        assert rows[0]["content"] == "{not json"


def test_other_fields_become_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"body": "x", "id": 7, "meta": {"k": null}}\n{"body": "y", "meta": null}')
    assert list(iter_jsonl(path, text_field="body")) == [Document("x", {"k": None, "id": 7}), Document("y")]


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "b.txt").write_bytes("é\r\nline".encode())
    (tmp_path / "sub" / "a.py").write_text("code")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    corpus = iter_folder(tmp_path)
    expected = [
        Document("é\r\nline", {"path": "b.txt"}),
        Document("code", {"path": "sub/a.py", "pile_set_name": "sub"}),
    ]
    for _ in range(2):
        assert list(corpus) == expected
        assert [where for where, _ in corpus.rejected] == ["image.png"]
    assert list(iter_folder(tmp_path, patterns=["*.txt"])) == expected[:1]
    assert list(iter_folder(tmp_path, patterns=["sub/*"])) == expected[1:]
    assert list(iter_corpus(tmp_path)) == expected
    assert list(iter_corpus(tmp_path / "sub" / "a.py")) == [Document("code", {"path": "a.py"})]


def test_a_folder_of_jsonl_is_one_corpus(tmp_path: Path) -> None:
    (tmp_path / "00.jsonl").write_bytes(lines(GOOD[:2]) + b"bad\n")
    (tmp_path / "01.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(GOOD[2:])))
    corpus = iter_corpus(tmp_path)
    assert [document.meta["n"] for document in corpus] == list(range(100))
    assert [where for where, _ in corpus.rejected] == ["00.jsonl:3"]
    assert write_store(tmp_path.parent / "out", corpus).documents == 100
    (tmp_path / "readme.txt").write_text("x")
    corpus = iter_corpus(tmp_path)
    assert list(corpus)[-1] == Document("x", {"path": "readme.txt"})
    assert corpus.remarks() == ["100 documents are rows of files, 1 are whole files"]


def test_missing_corpora_are_named(tmp_path: Path) -> None:
    for use in (iter_jsonl, iter_folder, iter_corpus):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            use(tmp_path / "nowhere")


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    columns = {
        "text": ["one", None, "é"],
        "id": [1, 2, 3],
        "meta": [{"pile_set_name": "PEPs"}, None, None],
    }
    parquet.write_table(pyarrow.table(columns), path)
    corpus = iter_corpus(path)
    for _ in range(2):
        assert list(corpus) == [Document("one", {"pile_set_name": "PEPs", "id": 1}), Document("é", {"id": 3})]
        assert [tuple(row) for row in corpus.rejected] == [(2, "field 'text' must be a string, got NoneType")]
    with pytest.raises(ValueError, match="has no column 'body', only text, id, meta"):
        list(iter_parquet(path, text_field="body"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        list(iter_parquet(tmp_path / "a.parquet"))
