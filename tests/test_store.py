"""The text store keeps every text, reads it back in any order, and refuses what it cannot keep."""

import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tttnn import _core
from tttnn.config import StoreConfig
from tttnn.store import writer as writer_module
from tttnn.store.corpus import iter_jsonl
from tttnn.store.document import Document, text_digest
from tttnn.store.export import export_jsonl
from tttnn.store.text_store import TextStore
from tttnn.store.writer import TextStoreWriter, train_dictionary, write_store

PILE_MINI = Path(__file__).parents[2] / "shared" / "data" / "pile-mini"
WORDS = ["store", "neighbor", "gradient", "fjord", "naïve", "Ωmega", "日本語", "🙂", "\x00", "\r\n", "\u2028"]


def make_documents(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    documents = []
    for i in range(count):
        words = WORDS if i % 4 == 0 else WORDS[:4]
        text = " ".join(rng.choice(words, size=int(rng.integers(0, 200))).tolist())
        meta = {} if i % 7 == 0 else {"pile_set_name": f"source {i % 3}", "number": i}
        documents.append(Document(text, meta))
    return documents


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return make_documents(1500)


@pytest.fixture(scope="module")
def store_path(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "texts.zst"
    write_store(path, documents)
    return path


@pytest.fixture(params=["mmap", "pread"])
def store(request: pytest.FixtureRequest, store_path: Path) -> TextStore:
    return TextStore.open(store_path, io=request.param)


def write(path: Path, texts: list[str], **config: int) -> TextStore:
    with TextStoreWriter(path, config=StoreConfig(**config)) as writer:
        for text in texts:
            writer.append(text)
    return TextStore.open(path)


def test_every_document_comes_back(store: TextStore, documents: list[Document]) -> None:
    assert len(store) == len(documents)
    assert list(store) == documents
    for i in (0, 1, 63, 64, 639, 640, 641, 1499, -1, -1500):
        assert store[i] == documents[i]
        assert store.read_text(i) == documents[i].text
    assert store[np.int64(7)] == documents[7]


def test_slices_are_lists(store: TextStore, documents: list[Document]) -> None:
    for s in (slice(None), slice(3, 9), slice(-5, None), slice(None, None, -1), slice(10, 5), slice(0, 1500, 97)):
        assert store[s] == documents[s]


def test_read_many_keeps_order_and_duplicates(store: TextStore, documents: list[Document]) -> None:
    ids = [1400, 3, 3, 0, 1499, 3]
    assert store.read_many(ids) == [documents[i] for i in ids]
    assert store.read_many(np.array(ids, np.int32), texts_only=True) == [documents[i].text for i in ids]
    assert store.read_many(range(5, 2, -1)) == [documents[i] for i in (5, 4, 3)]
    assert store.read_many([]) == []
    assert store.read_many(np.empty(0)) == []


def test_large_batches_use_threads_and_keep_order(store: TextStore, documents: list[Document]) -> None:
    ids = np.random.default_rng(0).integers(0, len(documents), 5000)
    assert store.read_many(ids, texts_only=True) == [documents[i].text for i in ids]


@pytest.mark.parametrize("bad", [1500, -1501])
def test_a_wrong_id_is_an_index_error(store: TextStore, bad: int) -> None:
    with pytest.raises(IndexError, match=str(bad)):
        store[bad]
    with pytest.raises(IndexError, match=str(bad)):
        store.read_many([0, bad])


def test_read_many_refuses_the_padding_of_a_search(store: TextStore) -> None:
    with pytest.raises(IndexError, match="got -1"):
        store.read_many(np.array([3, -1]))


@pytest.mark.parametrize("bad", [[0.5], [True], ["1"]])
def test_ids_must_be_integers(store: TextStore, bad: list[object]) -> None:
    with pytest.raises(TypeError, match="ids must be integers"):
        store.read_many(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one dimension"):
        store.read_many(np.zeros((1, 1), np.int64))
    with pytest.raises(TypeError, match="document id must be an integer"):
        store["1"]  # type: ignore[call-overload]


def test_sources_are_a_column(store: TextStore, documents: list[Document]) -> None:
    assert store.sources == ["source 1", "source 2", "source 0"]
    names = [None if code < 0 else store.sources[code] for code in store.source_codes]
    assert names == [document.source for document in documents]
    assert not store.source_codes.flags.writeable
    mask = store.source_codes == store.sources.index("source 2")
    assert mask.sum() == sum(document.source == "source 2" for document in documents)


def test_verify_and_info(store: TextStore, documents: list[Document]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    store.verify(progress=lambda *event: seen.append(event))
    assert seen[-1] == ("verify", 1500, 1500)
    store.verify(full=False)
    info = store.info()
    assert info["documents"] == 1500
    assert info["text_bytes"] == sum(len(document.text.encode()) for document in documents)
    assert info["ascii_documents"] == sum(document.text.isascii() for document in documents)
    assert info["file_bytes"] == store.nbytes == store.path.stat().st_size
    assert info["store_id"] == store.store_id


def test_a_failing_progress_function_ends_verify(store: TextStore) -> None:
    def fail(*_: object) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        store.verify(progress=fail)


def test_store_id_depends_on_content_only(tmp_path: Path, documents: list[Document]) -> None:
    some = documents[:100]
    ids = {
        write_store(tmp_path / "a", some, config=StoreConfig(level=level, dictionary_bytes=size)).store_id
        for level, size in ((1, 0), (9, 4096))
    }
    assert len(ids) == 1
    changed = [
        [*some[:50], Document(some[50].text + "x", some[50].meta), *some[51:]],
        [*some[:50], Document(some[50].text, {"a": 1}), *some[51:]],
        some[:99],
        some[::-1],
        [*some, Document("")],
    ]
    for other in changed:
        ids.add(write_store(tmp_path / "a", other).store_id)
    assert len(ids) == 6


def test_threads_do_not_change_the_file(tmp_path: Path, documents: list[Document]) -> None:
    files = []
    for threads in (1, 2, 8):
        write_store(tmp_path / "a", documents, config=StoreConfig(threads=threads))
        files.append((tmp_path / "a").read_bytes())
    assert files[0] == files[1] == files[2]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs",))),
            st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.booleans()), max_size=3),
        ),
        max_size=30,
    ),
    st.sampled_from([0, 4096]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_unicode_round_trips(tmp_path: Path, pairs: list[tuple[str, dict[str, object]]], dictionary: int) -> None:
    written = [Document(text, meta) for text, meta in pairs]
    write_store(tmp_path / "a", written, config=StoreConfig(dictionary_bytes=dictionary, level=1, threads=1))
    with TextStore.open(tmp_path / "a") as store:
        assert list(store) == written
        assert [store[i] for i in range(len(store))] == written
        store.verify()


def test_edges_round_trip(tmp_path: Path) -> None:
    texts = ["", "a", "é", "\x00", "\x00" * 100_000, "\x7f", "\x80", "a" * 20_000_000, "é🙂" * 2_000_000, "🙂", "", "x"]
    with write(tmp_path / "a", texts) as store:
        assert [document.text for document in store] == texts
        assert store.read_many(range(12), texts_only=True) == texts
        assert [store.read_text(i) for i in range(12)] == texts
        for text in store.read_many(range(12), texts_only=True):
            assert text.encode().decode() == text
        store.verify()


def test_single_characters_are_not_written_into(tmp_path: Path) -> None:
    with write(tmp_path / "a", ["q", "", "w"]) as store:
        assert store.read_many([2, 1, 0], texts_only=True) == ["w", "", "q"]
    assert chr(113) == "q"
    assert chr(119) == "w"


def test_an_empty_store(tmp_path: Path) -> None:
    with write(tmp_path / "a", []) as store:
        assert len(store) == 0
        assert list(store) == store[:] == []
        assert store.source_codes.shape == (0,)
        store.verify()
        with pytest.raises(IndexError):
            store[0]


def test_lone_surrogates_are_refused_by_document(tmp_path: Path) -> None:
    with TextStoreWriter(tmp_path / "a") as writer:
        writer.append("fine")
        with pytest.raises(ValueError, match=r"document 1 .*character 3 is a lone surrogate, U\+D800"):
            writer.append("abc\ud800")
        with pytest.raises(ValueError, match=r"document 1 .*lone surrogate"):
            writer.append("abc", {"pile_set_name": "\udfff"})
        with pytest.raises(ValueError, match=r"document 1 .*field 'a\[1\].title' has a lone surrogate, U\+D800"):
            writer.append("abc", {"a": [0, {"title": "\ud800"}]})
        with pytest.raises(ValueError, match=r"document 1 .*name of a field has a lone surrogate"):
            writer.append("abc", {"\udc00": 1})
        writer.append("next", {"title": "a pair \U0001f600"})
    expected = [Document("fine"), Document("next", {"title": "a pair \U0001f600"})]
    assert list(TextStore.open(tmp_path / "a")) == expected


def nested(levels: int) -> dict[str, object]:
    """Metadata of so many objects and lists inside each other."""
    value: object = 1
    for level in range(levels - 1):
        value = [value] if level % 2 else {"k": value}
    return {"n": value}


@pytest.mark.parametrize(
    ("meta", "rule"),
    [
        ({"score": float("nan")}, "field 'score' must be finite, got nan"),
        ({"a": {"b": [1.0, -float("inf")]}}, r"field 'a.b\[1\]' must be finite, got -inf"),
        (nested(65), "nested at most 64 deep"),
        (nested(5000), "nested at most 64 deep"),
        ({"pile_set_name": "s" * 300_000}, "at most 262144 bytes, got 300000"),
        ({"long": "x" * (17 << 20)}, "at most 16777216 bytes of metadata"),
    ],
    ids=["nan", "inf", "65", "5000", "source", "size"],
)
def test_metadata_are_checked_at_the_door(tmp_path: Path, meta: dict[str, object], rule: str) -> None:
    with TextStoreWriter(tmp_path / "a") as writer:
        with pytest.raises(ValueError, match=f"metadata of document 0 must be what JSON can hold: .*{rule}"):
            writer.append("text", meta)
        writer.append("text", nested(64))
    with TextStore.open(tmp_path / "a") as store:
        assert [document.meta for document in store] == [nested(64)]


def test_what_older_versions_let_in_comes_out_as_strict_json(tmp_path: Path) -> None:
    """Their stores hold NaN, surrogates and any depth: such are read as text, exported, and written again."""
    deep = b'{"deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    metas = [
        b'{"n": NaN, "i": [-Infinity]}',
        b'{"s": "x\\ud83d", "e": "\\ud83d\\ude00"}',
        deep,
        b'{"k": ' * 99 + b"1" + b"}" * 99,
    ]
    raw = _core.StoreWriter(
        str(tmp_path / "old"),
        level=1,
        dictionary_bytes=0,
        threads=1,
        resume=False,
        commit_bytes=1 << 20,
        dictionary=b"",
    )
    for meta in metas:
        raw.append("text", meta, "")
    raw.finish()
    with TextStore.open(tmp_path / "old") as store:
        found = [document.meta for document in store]
        assert found[0] == {"n": "NaN", "i": ["-Infinity"]}
        assert found[1] == {"s": "x\N{REPLACEMENT CHARACTER}", "e": "\U0001f600"}
        assert store[2].meta == found[2]
        export_jsonl(store, tmp_path / "lines.jsonl")
    lines = (tmp_path / "lines.jsonl").read_bytes().decode().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["meta"] for line in lines] == found
    assert list(iter_jsonl(tmp_path / "lines.jsonl")) == [Document("text", meta) for meta in found]
    write_store(tmp_path / "new", iter_jsonl(tmp_path / "lines.jsonl"))


def test_writer_refuses_what_is_not_a_text(tmp_path: Path) -> None:
    with TextStoreWriter(tmp_path / "a") as writer:
        with pytest.raises(TypeError, match="text of document 0 must be str, got bytes"):
            writer.append(b"bytes")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="metadata of document 0 must be what JSON can hold: Object of type object"):
            writer.append("text", {"a": object()})
    assert len(TextStore.open(tmp_path / "a")) == 0


def test_an_exception_leaves_the_former_store(tmp_path: Path) -> None:
    write(tmp_path / "a", ["old"]).close()
    with pytest.raises(KeyError), TextStoreWriter(tmp_path / "a") as writer:  # noqa: PT012
        writer.append("new")
        raise KeyError
    assert TextStore.open(tmp_path / "a")[0].text == "old"
    assert (tmp_path / "a.partial").exists()
    with pytest.raises(ValueError, match="closed"):
        writer.append("more")


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    old = write(tmp_path / "a", ["old"])
    new = write(tmp_path / "a", ["new", "er"])
    assert old[0].text == "old"
    assert new[0].text == "new"


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with TextStoreWriter(tmp_path / "a"), pytest.raises(OSError, match="another writer holds it"):
        TextStoreWriter(tmp_path / "a", resume=True)


def test_a_closed_store_is_a_value_error(store_path: Path) -> None:
    with TextStore.open(store_path) as store:
        pass
    for use in (lambda: store[0], lambda: store.read_many([0]), lambda: list(store), lambda: store.store_id):
        with pytest.raises(ValueError, match="closed"):
            use()
    store.close()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TextStore.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        TextStoreWriter(tmp_path / "no" / "where")
    with pytest.raises(OSError, match="not a regular file"):
        TextStore.open(tmp_path)
    with pytest.raises(ValueError, match="io must be mmap or pread"):
        TextStore.open(tmp_path, io="directio")  # type: ignore[arg-type]


def test_a_disk_that_fills_up_is_an_os_error(tmp_path: Path) -> None:
    code = (
        "import os, resource, signal, sys\n"
        "from tttnn import TextStoreWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    with TextStoreWriter(sys.argv[1]) as writer:\n"
        "        for i in range(1000): writer.append(os.urandom(1000).hex())\n"
        "except OSError as error:\n"
        "    assert 'cannot be written' in str(error), error\n"
        "    sys.exit(7)\n"
    )
    path = tmp_path / "a"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 7
    assert not path.exists()


def test_pickles_by_path(store: TextStore, documents: list[Document]) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert copy[17] == documents[17]
    assert copy.store_id == store.store_id


def _read_in_child(store: TextStore, ids: list[int]) -> list[str]:
    return store.read_many(ids, texts_only=True)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_children(store: TextStore, documents: list[Document], method: str) -> None:
    ids = list(range(0, 1500, 2))
    expected = store.read_many(ids, texts_only=True)  # starts the pool in the parent
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_read_in_child, [(store, ids)] * 4) == [expected] * 4


def test_many_threads_read_one_store(store: TextStore, documents: list[Document]) -> None:
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(20):
            ids = rng.integers(0, len(documents), 100)
            assert store.read_many(ids) == [documents[i] for i in ids]
            assert store[int(ids[0])] == documents[ids[0]]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_a_dictionary_may_be_trained_on_the_whole_corpus(tmp_path: Path) -> None:
    half = ["alpha beta gamma", "jumps over the lazy dog"]
    rng = np.random.default_rng(0)
    documents = [Document(f"{half[i // 5000]} {rng.integers(1e9)} {half[i // 5000]}") for i in range(10_000)]
    config = StoreConfig(dictionary_bytes=1024)
    dictionary = train_dictionary(documents, config=config)
    assert dictionary == train_dictionary(iter(documents), config=config)
    assert b"alpha beta" in dictionary
    assert b"lazy dog" in dictionary
    first = write_store(tmp_path / "first", documents, config=config)
    spread = write_store(tmp_path / "spread", documents, config=config, dictionary=dictionary)
    assert spread.store_id == first.store_id
    assert spread.file_bytes < first.file_bytes
    assert TextStore.open(tmp_path / "spread").dictionary() == dictionary
    assert train_dictionary([], config=config) == b""


def test_zstd_prints_the_corpus(store_path: Path, documents: list[Document], tmp_path: Path) -> None:
    """The file is a legal zstd stream: any zstd decodes it, given the dictionary."""
    with TextStore.open(store_path) as store:
        assert store.dictionary()
        dictionary = zstandard.ZstdCompressionDict(store.dictionary())
    with store_path.open("rb") as file:
        reader = zstandard.ZstdDecompressor(dict_data=dictionary).stream_reader(file, read_across_frames=True)
        assert reader.read() == "".join(document.text for document in documents).encode()


def test_text_digest_is_blake2b_of_utf8() -> None:
    assert text_digest("") == "cae66941d9efbd404e4d88758ea67670"
    assert text_digest("é") != text_digest("e")
    assert len(text_digest("x")) == 32


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_export_loses_nothing(store: TextStore, documents: list[Document], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert export_jsonl(store, path) == len(documents)
    back = iter_jsonl(path)
    assert list(back) == documents
    assert back.rejected == []
    assert write_store(tmp_path / "again", back).store_id == store.store_id


def test_write_store_reports_progress(tmp_path: Path, documents: list[Document]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    write_store(tmp_path / "a", documents, progress=lambda *event: seen.append(event))
    assert seen == [("import", 1000, None), ("import", 1500, 1500)]


# A dictionary is trained on the first 400 KB, so that commits begin well before the end.
SMALL = StoreConfig(dictionary_bytes=4096)


def interrupt_after(path: Path, documents: list[Document], count: int, *, resume: bool = False) -> int:
    with pytest.raises(InterruptedError), TextStoreWriter(path, config=SMALL, resume=resume) as writer:  # noqa: PT012
        committed = writer.committed
        for document in documents[:count]:
            writer.append(document.text, document.meta)
        raise InterruptedError
    return committed


def test_a_resumed_file_is_the_same(tmp_path: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_COMMIT_BYTES", 10_000)
    write_store(tmp_path / "whole", documents, config=SMALL)
    path = tmp_path / "cut"
    interrupt_after(path, documents, 1000)
    first = interrupt_after(path, documents, 1300, resume=True)
    with TextStoreWriter(path, config=SMALL, resume=True) as writer:
        assert 0 < first < writer.committed < 1300
        for document in documents:
            writer.append(document.text, document.meta)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "cut.partial").exists()


def test_resume_refuses_another_source(
    tmp_path: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_COMMIT_BYTES", 10_000)
    path = tmp_path / "cut"
    interrupt_after(path, documents, 1000)
    changed = [*documents[:100], Document("other"), *documents[101:]]
    with pytest.raises(ValueError, match="documents 64 to 127 are not those"):
        write_store(path, changed, config=SMALL, resume=True)
    with pytest.raises(ValueError, match="the source ended after 10"):
        write_store(path, documents[:10], config=SMALL, resume=True)
    with pytest.raises(ValueError, match="begun with level 6"):
        write_store(path, documents, config=StoreConfig(level=3), resume=True)
    assert write_store(path, documents, config=SMALL, resume=True).documents == 1500


@pytest.mark.data
@pytest.mark.skipif(not PILE_MINI.exists(), reason="pile-mini is not beside the checkout")
def test_pile_mini_round_trips(tmp_path: Path) -> None:
    corpus = iter_jsonl(PILE_MINI / "val.jsonl.zst")
    summary = write_store(tmp_path / "val", corpus)
    assert corpus.rejected == []
    with TextStore.open(tmp_path / "val") as store:
        assert list(store) == list(corpus)
        store.verify()
        rows = [json.loads(line) for line in (PILE_MINI / "tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    assert summary.file_bytes < 0.4 * summary.text_bytes
    assert [document.text for document in iter_jsonl(PILE_MINI / "tiny.jsonl")] == [row["text"] for row in rows]


def test_threads_may_share_a_writer(tmp_path: Path, documents: list[Document]) -> None:
    with TextStoreWriter(tmp_path / "a", config=SMALL) as writer, ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda document: writer.append(document.text, document.meta), documents))
    assert sorted(ids) == list(range(len(documents)))
    with TextStore.open(tmp_path / "a") as store:
        assert [store[i] for i in ids] == documents


def _use_writer(writer: TextStoreWriter) -> str:
    try:
        writer.append("from a child")
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_writer_belongs_to_its_process(tmp_path: Path) -> None:
    with TextStoreWriter(tmp_path / "a", config=StoreConfig(dictionary_bytes=0)) as writer:
        writer.append("one")
        child = os.fork()
        if child == 0:
            message = _use_writer(writer)
            writer.close()
            del writer
            gc.collect()
            os._exit(0 if "belongs to the process" in message else 1)
        assert os.waitpid(child, 0)[1] == 0
        writer.append("two")
    assert [document.text for document in TextStore.open(tmp_path / "a")] == ["one", "two"]
