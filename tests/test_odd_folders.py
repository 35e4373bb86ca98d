"""A folder with one of everything: what can be read is read, the rest is listed with its reason, nothing hangs."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tttnn.config import CorpusConfig
from tttnn.files import write_manifest
from tttnn.formats import reader as reader_module
from tttnn.formats.compression import Inflated
from tttnn.formats.streams import OpenedFile
from tttnn.store.corpus import iter_corpora, iter_corpus
from tttnn.store.document import Document
from tttnn.store.export import export_jsonl
from tttnn.store.text_store import TextStore
from tttnn.store.writer import write_store

LIMIT = 1 << 16
ROWS = [{"text": f"row {i} ü", "n": i} for i in range(4)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
PACKED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstandard.compress}


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Path]:
    """The folder; its socket is closed afterwards."""
    folder = tmp_path / "odd"
    folder.mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    os.mkfifo(folder / "pipe")
    for name, target in (("broken", "/no/such"), ("loop", "loop"), ("folder link", "."), ("link", "plain.txt")):
        (folder / name).symlink_to(target)
    for name, content in {
        "plain.txt": b"plain\r\ntext",
        "empty.txt": b"",
        "blank.txt": b" \n\t",
        "binary.dat": bytes(range(256)),
        "latin.txt": "größe".encode("latin-1"),
        "utf16.txt": "sechzehn".encode("utf-16"),
        "utf32.txt": "zweiunddreißig".encode("utf-32"),
        "mark.txt": b"\xef\xbb\xbfmarked",
        "image.png": b"\x89PNG\r\n\x1a\n....",
        "paper.pdf": b"%PDF-1.7 ...",
        "pointer.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "huge.txt": b"x" * (LIMIT + 1),
        "huge line.jsonl": b'{"text": "' + b"y" * 3 * LIMIT + b'"}\n' + LINES,
        "bomb.txt.gz": gzip.compress(b"\0" * (LIMIT * 50)),
        "torn.jsonl.gz": gzip.compress(LINES * 50)[:-9],
        "settings.json": b'{\n "name": "x"\n}',
        "array.json": json.dumps(ROWS, indent=1).encode(),
        "LINES.JSONL": LINES,
        "no suffix": LINES,
        "wide.ndjson": LINES.decode().encode("utf-16"),
        "table.csv": b'id,text\n1,"a, ""b""\nc"\n2,d,e\n3,f\n',
        "other.tsv": b"id\tbody\n1\tx\n",
    }.items():
        (folder / name).write_bytes(content)
    for suffix, pack in PACKED.items():
        (folder / f"packed.jsonl.{suffix.upper()}").write_bytes(pack(LINES))
    with tarfile.open(folder / "pack.tgz", "w:gz") as archive:
        for name, content in (("in/a.txt", b"in tar"), ("in/b.jsonl", LINES)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "pack.zip", "w") as archive_zip:
        archive_zip.writestr("a.txt", "in zip")
        archive_zip.writestr("b.zip", b"PK\x05\x06" + b"\0" * 18)
    with zipfile.ZipFile(folder / "letter.docx", "w") as letter:
        letter.writestr("[Content_Types].xml", "<x/>")
    with open(os.fsencode(folder) + b"/caf\xe9\n.txt", "w") as file:
        file.write("odd name")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.py").write_text("code")
    (folder / ".hidden").write_text("never")
    (folder / "store").mkdir()
    write_store(folder / "store" / "texts.zst", [Document("kept elsewhere")])
    (folder / "built").mkdir()
    write_manifest(folder / "built" / "build.json", {"format": 1})
    (folder / "built" / "inside.txt").write_text("never")
    yield folder
    listening.close()


LEFT_OUT = {
    "binary.dat": "is binary",
    "blank.txt": "holds no text",
    "bomb.txt.gz": "is longer than 64 KiB",
    "broken": "is a link to a file that is not there",
    "built": "is a datastore of tttnn",
    "empty.txt": "is empty",
    "folder link": "is a link to a folder",
    "huge line.jsonl:1": "is longer than 64 KiB",
    "huge.txt": "is longer than 64 KiB",
    "image.png": "is a PNG image, which is not read",
    "latin.txt": "is not UTF-8",
    "letter.docx": "is docx, which is not read",
    "loop": "is a link that leads back to itself",
    "other.tsv": "has no column 'text', only id, body",
    "pack.zip/b.zip": "is an archive in an archive",
    "paper.pdf": "is PDF, which is not read",
    "pipe": "is a pipe, not a regular file",
    "pointer.bin": "is a pointer of git LFS",
    "socket": "is a socket, not a regular file",
    "store/texts.zst": "is a text store of tttnn",
    "table.csv:4": "has 3 values, expected 2",
    "torn.jsonl.gz": "inside a gzip frame",
}
TEXTS = {
    "plain.txt": "plain\r\ntext",
    "link": "plain\r\ntext",
    "utf16.txt": "sechzehn",
    "utf32.txt": "zweiunddreißig",
    "mark.txt": "marked",
    "settings.json": '{\n "name": "x"\n}',
    "pack.tgz/in/a.txt": "in tar",
    "pack.zip/a.txt": "in zip",
    "caf\\xe9\\x0a.txt": "odd name",
    "sub/deep.py": "code",
}


def test_a_folder_with_one_of_everything(odd: Path, tmp_path: Path) -> None:
    config = CorpusConfig(max_document_bytes=LIMIT)
    corpus = iter_corpus(odd, config)
    documents = list(corpus)
    assert list(corpus) == documents
    reasons = dict(corpus.rejected)
    assert list(reasons) == sorted(LEFT_OUT)
    for where, reason in LEFT_OUT.items():
        assert reason in reasons[where]
    texts = {document.meta["path"]: document.text for document in documents if "path" in document.meta}
    assert texts == TEXTS
    rows = [document.text for document in documents if "path" not in document.meta]
    # Of each file of rows all of them, and of the torn one what stands before the tear.
    whole = 6 + len(PACKED)
    assert len(rows) - 2 - 4 * whole in range(100, 201)
    assert 'a, "b"\nc' in rows
    assert {document.source for document in documents} == {None, "sub", "pack.tgz", "pack.zip"}
    rejects = tmp_path / "rejects.jsonl"
    summary = write_store(tmp_path / "store", iter_corpora([odd], config, rejects=rejects))
    assert summary.documents == len(documents)
    assert [json.loads(line)["where"] for line in rejects.read_text().splitlines()] == list(reasons)
    with TextStore.open(tmp_path / "store") as store:
        assert export_jsonl(store, tmp_path / "out.jsonl.gz") == len(documents)
    assert list(iter_corpus(tmp_path / "out.jsonl.gz")) == documents


def test_globs_and_sources(odd: Path) -> None:
    config = CorpusConfig(include=("*.txt", "sub"), exclude=("utf*", "pack.*"), folder_source="suffix")
    names = {document.meta["path"]: document.source for document in iter_corpus(odd, config)}
    expected = {"plain.txt": "txt", "mark.txt": "txt", "huge.txt": "txt", "caf\\xe9\\x0a.txt": "txt"}
    assert names == expected | {"sub/deep.py": "py"}


@pytest.mark.parametrize("change", ["grows", "vanishes", "shrinks"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(LINES)
    (tmp_path / "b.txt").write_text("still here")

    def opened(place: Path, *, wait: bool) -> OpenedFile:
        if change == "vanishes" and place == path:
            path.unlink()
        file = OpenedFile(os.open(place, os.O_RDONLY))
        if place == path:
            path.write_bytes(LINES * 2 if change == "grows" else LINES[:20])
        return file

    monkeypatch.setattr(reader_module, "opened", opened)
    corpus = iter_corpus(tmp_path)
    documents = list(corpus)
    assert documents[-1].text == "still here"
    found = dict(corpus.rejected)
    expected = "is gone" if change == "vanishes" else "changed while it was read"
    assert expected in found[name]
    rows = 4 if (change, name) == ("grows", "a.jsonl") else 0
    assert len(documents) == 1 + rows


def test_columns_of_any_type_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "text": ["one", "two"],
        "when": [datetime.datetime(2020, 2, 29, 1, 2, 3), None],
        "fine": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "raw": [b"\xff\x00", b"plain"],
        "exact": [decimal.Decimal("2.50"), None],
        "score": [float("nan"), 0.5],
        "pairs": pyarrow.array([[("k", 1)], None], type=pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }
    (tmp_path / "set").mkdir()
    for part in range(2):
        parquet.write_table(pyarrow.table(columns), tmp_path / "set" / f"{part}.parquet")
    documents = list(iter_corpus(tmp_path / "set"))
    assert [document.text for document in documents] == ["one", "two"] * 2
    meta = documents[0].meta
    assert meta["when"] == "2020-02-29T01:02:03"
    assert meta["raw"] == "/wA="
    assert documents[1].meta["raw"] == "plain"
    assert (meta["exact"], meta["score"], meta["pairs"]) == ("2.50", "NaN", [["k", 1]])


def test_pages_are_stripped_of_tags(tmp_path: Path) -> None:
    pytest.importorskip("selectolax", reason="selectolax is not installed")
    page = "<html><title>T</title><body><p>one <b>wo</b>rd<script>no</script><ul><li>a<li>b</ul><pre>  x\n y</pre>"
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.htm").write_bytes("<meta charset=latin-1><p>größe".encode("latin-1"))
    texts = [document.text for document in iter_corpus(tmp_path)]
    assert texts == ["T\none word\na\nb\n  x\n y", "größe"]


@pytest.mark.parametrize("suffix", list(PACKED))
@pytest.mark.parametrize("parts", [1, 3])
def test_unpacking_gives_all_frames_and_little_at_a_time(suffix: str, parts: int) -> None:
    content = LINES * 2000 + b"\0" * (8 << 20)
    names = {"gz": "gzip", "xz": "xz", "bz2": "bzip2", "zst": "zstd"}
    size = len(content) // parts + 1
    packed = b"".join(PACKED[suffix](content[at : at + size]) for at in range(0, len(content), size))
    stream = Inflated(io.BytesIO(packed), names[suffix])  # type: ignore[arg-type]
    pieces = []
    while piece := stream.piece():
        assert len(piece) <= 64 << 20
        pieces.append(piece)
    assert b"".join(pieces) == content


def test_a_named_source_field_and_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"body": "a", "meta": {"forum": 7}}\n{"body": "b", "forum": ["x"]}\n{"text": "c"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    corpus = iter_corpora(["-"], CorpusConfig(text_field="body", source_field="forum"))
    documents = iter(corpus)
    assert next(documents).source == "7"
    assert list(documents) == []
    assert [reason.split(",")[0] for _, reason in corpus.rejected] == [
        "field 'forum' must be a string or a number",
        "has no field 'body'",
    ]
    with pytest.raises(ValueError, match="can be read once"):
        list(corpus)


def test_no_document_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"content": "x"}\n[]\n{}\n{"text": 1}\n')
    rejects = tmp_path / "rejects"
    with pytest.raises(ValueError, match=r"has no field .text., only content; .*and 1 more\. Name .*--text-field"):
        write_store(tmp_path / "out", iter_corpora([tmp_path / "a.jsonl"], rejects=rejects))
    assert len(rejects.read_text().splitlines()) == 4
    assert not list(tmp_path.glob("out*"))
