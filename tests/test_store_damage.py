"""Damage, crashes and foreign files: the right text or an error that names file, document and byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tttnn.config import StoreConfig
from tttnn.errors import StoreCorruptError, StoreVersionError
from tttnn.store.document import Document
from tttnn.store.repair import repair_store
from tttnn.store.text_store import TextStore
from tttnn.store.writer import TextStoreWriter, write_store

GOLDEN = Path(__file__).parent / "data" / "store-1.0.zst"
GOLDEN_ID = "cdfcc3ba76ac9a06b7020f453904e313"


def golden_documents() -> list[Document]:
    """Return what the golden file of format 1.0 holds; changing this is changing the golden file."""
    lines = [
        "The neighbors of a query are found before the model is trained on them.",
        "Every weight is put back, bit for bit, when the answer is given.",
        "Ein Text in einer anderen Sprache: größer, schöner, süßer.",
        "日本語の短い文書です。",
        "🙂🙃 emoji are four bytes each \U0001f680",
        "NUL \x00 and line ends \r\n and \u2028 are kept",
        "",
    ]
    documents = []
    for i in range(150):
        text = "\n".join(lines[(i * k) % 7] for k in range(1, 2 + i % 9))
        meta = {} if i % 10 == 9 else {"pile_set_name": ["Github", "PEPs", "größe"][i % 3], "number": i}
        documents.append(Document(text, meta))
    return documents


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(3)
    words = ["store", "text", "neighbor", "naïve", "the", "of"]
    return [
        Document(" ".join(rng.choices(words, k=rng.randrange(120))) + f" {i}", {"pile_set_name": "a", "i": i})
        for i in range(200)
    ]


@pytest.fixture(scope="module")
def original(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("store") / "a"
    write_store(path, documents, config=StoreConfig(dictionary_bytes=2048))
    return path.read_bytes()


def check(path: Path, documents: list[Document], *, io: str = "mmap") -> str | None:
    """Read everything; return the message of the first damage, and fail on any other answer."""
    try:
        with TextStore.open(path, io=io) as store:  # type: ignore[arg-type]
            assert len(store) == len(documents)
            message = None
            for i in range(0, len(documents), 7):
                try:
                    assert store[i] == documents[i]
                except StoreCorruptError as error:
                    message = str(error)
            try:
                assert list(store) == documents
            except StoreCorruptError as error:
                message = str(error)
            return message
    except (StoreCorruptError, StoreVersionError) as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return message


def test_the_golden_file_reads(tmp_path: Path) -> None:
    documents = golden_documents()
    with TextStore.open(GOLDEN) as store:
        assert store.info()["format"] == "1.0"
        assert list(store) == documents
        assert store.sources == ["Github", "PEPs", "größe"]
        assert store.store_id == GOLDEN_ID
        store.verify()
    assert write_store(tmp_path / "a", documents, config=StoreConfig(dictionary_bytes=1024)).store_id == GOLDEN_ID


def test_random_flips(original: bytes, documents: list[Document], tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "a"
    noticed = 0
    for i in range(400):
        damaged = bytearray(original)
        at = rng.randrange(len(damaged))
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        noticed += check(path, documents, io=("mmap", "pread")[i % 2]) is not None
    # Only padding, reserved bytes between pages, and commit records are never looked at by a read.
    assert noticed > 250


def test_verify_finds_every_flip(original: bytes, documents: list[Document], tmp_path: Path) -> None:
    """Except of bits that zstd's decoder ignores, of which each frame has a few: there the texts are right."""
    rng = random.Random(2)
    path = tmp_path / "a"
    found = 0
    for _ in range(400):
        damaged = bytearray(original)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            TextStore.open(path).verify()
        except (StoreCorruptError, StoreVersionError):
            found += 1
        else:
            assert check(path, documents) is None
    assert found >= 395


def test_a_damaged_text_is_named(original: bytes, documents: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(original)
    with TextStore.open(path) as store:
        begin = 144 + len(store.dictionary())
    damaged = bytearray(original)
    damaged[begin + 20] ^= 255
    path.write_bytes(damaged)
    store = TextStore.open(path)
    with pytest.raises(StoreCorruptError, match=rf"a: document 0 at byte {begin} .*[Rr]estore"):
        store[0]
    with pytest.raises(StoreCorruptError, match="document 0 at byte"):
        store.read_many(range(100))
    assert store[1] == documents[1]


def test_cut_files_are_refused(original: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for size in [*range(0, len(original), 512), len(original) - 1]:
        path.write_bytes(original[:size])
        with pytest.raises(StoreCorruptError, match="a: "):
            TextStore.open(path)


@pytest.mark.parametrize("content", [b"", b"text", b'{"text": "line"}\n' * 100, b"\0" * 5000, b"(\xb5/\xfd" * 100])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="is not a tttnn text store"):
        TextStore.open(path)


def test_versions_from_the_future_are_refused(original: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    # A newer header may have another size: only its mark and version count.
    path.write_bytes(original[:4] + b"\xf8" + original[5:16] + b"\x02\x00" + original[18:])
    with pytest.raises(StoreVersionError, match="format version 2 found, expected at most 1"):
        TextStore.open(path)


def test_a_file_cut_while_it_is_open(original: bytes, documents: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(original)
    with TextStore.open(path, io="pread") as store:
        assert store[0] == documents[0]
        os.truncate(path, len(original) // 2)
        with pytest.raises(StoreCorruptError, match=r"ends before byte \d+; it had"):
            store[199]


def test_a_file_replaced_while_it_is_mapped(original: bytes, documents: list[Document], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(original)
    with TextStore.open(path) as store:
        write_store(path, documents[:3])
        assert list(store) == documents
    assert len(TextStore.open(path)) == 3


WRITE = """
import random, sys
from tttnn.store import writer as store
from tttnn.store.document import Document
from tttnn.config import StoreConfig
store._COMMIT_BYTES = 50_000
rng = random.Random(0)
documents = (Document(f"{i} " + " ".join(str(rng.getrandbits(30)) for _ in range(rng.randrange(200))),
                      {"pile_set_name": f"s{i % 5}"}) for i in range(6000))
print("begin", flush=True)
store.write_store(sys.argv[1], documents, config=StoreConfig(dictionary_bytes=4096, threads=2), resume=True)
"""


def run_writer(path: Path, *, kill_after: float | None = None) -> bool:
    """Run the writer in a process of its own; return whether it ended before it was killed."""
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    status = process.wait()
    process.stdout.close()
    assert status in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("seconds", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_time_resumes_to_the_same_file(tmp_path: Path, seconds: int) -> None:
    begin = time.monotonic()
    assert run_writer(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    rng = random.Random(5)
    path = tmp_path / "killed"
    kills = resumed = 0

    def going() -> bool:
        return time.monotonic() - begin < seconds or kills <= 2  # a slow machine takes longer to kill as often

    while going():
        done = False
        while not done and going():
            done = run_writer(path, kill_after=rng.uniform(0, 0.5))
            kills += not done
            if not done:
                assert not path.exists() or path.read_bytes() == whole
                partial = Path(f"{path}.partial")
                resumed += partial.exists() and partial.stat().st_size > 100_000
        if not done:
            assert run_writer(path)
        assert path.read_bytes() == whole
        path.unlink()
    print(f"{kills} kills, {resumed} of them with commits to resume from")
    assert kills > 2


def test_a_torn_tail_resumes_to_the_same_file(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any prefix of the partial file, with or without garbage after it, is what a crash can leave."""
    monkeypatch.setattr("tttnn.store.writer._COMMIT_BYTES", 4_000)
    config = StoreConfig(dictionary_bytes=1024, level=1)
    texts = [*documents, *[Document(document.text * 3, document.meta) for document in documents]]
    write_store(tmp_path / "whole", texts, config=config)
    whole = (tmp_path / "whole").read_bytes()
    rng = random.Random(8)
    path = tmp_path / "cut"
    resumed = 0
    for _ in range(60):
        size = rng.randrange(len(whole) + 1)
        garbage = rng.randbytes(rng.choice([0, 1, 5000]))
        Path(f"{path}.partial").write_bytes(whole[:size] + garbage)
        with TextStoreWriter(path, config=config, resume=True) as writer:
            resumed += writer.committed > 0
            for document in texts:
                writer.append(document.text, document.meta)
        assert path.read_bytes() == whole
    assert resumed > 10


@pytest.fixture
def plenty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Document]]:
    monkeypatch.setattr("tttnn.store.writer._COMMIT_BYTES", 20_000)
    rng = random.Random(4)
    documents = [
        Document(f"{i} {rng.getrandbits(rng.choice([50, 5000]))}", {"pile_set_name": f"s{i // 100}", "i": i})
        for i in range(1000)
    ]
    write_store(tmp_path / "a", documents, config=StoreConfig(dictionary_bytes=2048))
    return tmp_path / "a", documents


def test_repair_of_tables_gives_the_file_as_it_was(
    plenty: tuple[Path, list[Document]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # commit records where a repair writes them
    path, documents = plenty
    write_store(path, documents, config=StoreConfig(dictionary_bytes=2048))
    whole = path.read_bytes()
    monitored: list[tuple[str, int, int | None]] = []
    for cut in (0, 1, 160, 4000, 9000):
        (tmp_path / "b").write_bytes(whole[: len(whole) - cut])
        report = repair_store(tmp_path / "b", tmp_path / "c", progress=lambda *event: monitored.append(event))
        assert (report.lost_texts, report.lost_metas) == ([], [])
        assert report.header_intact
        assert (tmp_path / "c").read_bytes() == whole
    assert monitored[-1][0] == "repair"


def test_repair_lists_what_is_lost(plenty: tuple[Path, list[Document]], tmp_path: Path) -> None:
    path, documents = plenty
    whole = path.read_bytes()
    rng = random.Random(6)
    lost = metas = unreadable = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice([1, 1, 3000])] = b"\xaa" * min(rng.choice([1, 1, 3000]), len(damaged) - at)
        (tmp_path / "b").write_bytes(damaged)
        try:
            report = repair_store(tmp_path / "b", tmp_path / "c")
        except (StoreCorruptError, StoreVersionError):
            unreadable += 1  # the dictionary or the version
            continue
        with TextStore.open(tmp_path / "c") as store:
            store.verify()
            assert len(store) <= len(documents)
            assert len(store) == len(documents) or not report.tail_known or len(damaged) != len(whole)
            for i, document in enumerate(store):
                if i in report.lost_texts:
                    assert document == Document("", {"lost": True})
                elif i in report.lost_metas:
                    assert document.text == documents[i].text
                else:
                    assert document == documents[i]
        lost += len(report.lost_texts)
        metas += len(report.lost_metas)
    assert 0 < lost < 6000
    assert metas > 0
    assert unreadable < 10


def test_repair_of_a_partial_file(plenty: tuple[Path, list[Document]], tmp_path: Path) -> None:
    _, documents = plenty
    with TextStoreWriter(tmp_path / "b", config=StoreConfig(dictionary_bytes=2048)) as writer:
        for document in documents:
            writer.append(document.text, document.meta)
        writer.close()
    report = repair_store(tmp_path / "b.partial", tmp_path / "c")
    store = TextStore.open(tmp_path / "c")
    assert 500 < len(store) == report.summary.documents
    assert list(store) == documents[: len(store)]


def test_repair_refuses_what_it_cannot_do(plenty: tuple[Path, list[Document]], tmp_path: Path) -> None:
    path, _ = plenty
    with pytest.raises(ValueError, match="target must be another file"):
        repair_store(path, path)
    (tmp_path / "b").write_bytes(b"no store " * 100)
    with pytest.raises(StoreCorruptError, match="nothing to repair"):
        repair_store(tmp_path / "b", tmp_path / "c")
