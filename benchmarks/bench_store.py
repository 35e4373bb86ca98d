"""Compare the text store with its rivals: the same documents, the same order, level 6, in one interleaved run.

    python benchmarks/bench_store.py CORPUS.jsonl.zst [--mean 5900] [--repeats 7] [--only 'tttnn;bagz']
    python benchmarks/bench_store.py CORPUS.jsonl.zst --units
    python benchmarks/bench_store.py CORPUS.jsonl.zst --scaling
    python benchmarks/bench_store.py --opening          # 10 thousand and 10 million short documents

Every read is compared with what was written, outside the timed part. Texts come back as str in every column but
"limit", which is zstd's own decoding of our frames into memory that is there. A rival that is not installed is left
out. "checks" says whether a read would notice a flipped byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEVEL = 6
clock = time.perf_counter


class Ours:
    name, checks = "tttnn", True
    io = "mmap"

    def build(self, path: Path, texts: list[str]) -> None:
        from tttnn.store.writer import TextStoreWriter

        with TextStoreWriter(path) as writer:
            for text in texts:
                writer.append(text)

    def open(self, path: Path) -> None:
        from tttnn.store.text_store import TextStore

        self.store = TextStore.open(path, io=self.io)

    def read(self, i: int) -> str:
        return self.store.read_text(i)

    def read_many(self, ids: np.ndarray) -> list[str]:
        return self.store.read_many(ids, texts_only=True)

    def close(self) -> None:
        self.store.close()


class OursPread(Ours):
    name = "tttnn, pread"
    io = "pread"


class OursNoDictionary(Ours):
    name = "tttnn, no dictionary"

    def build(self, path: Path, texts: list[str]) -> None:
        from tttnn.config import StoreConfig
        from tttnn.store.writer import TextStoreWriter

        with TextStoreWriter(path, config=StoreConfig(dictionary_bytes=0)) as writer:
            for text in texts:
                writer.append(text)


class Rival(ABC):
    name: str
    checks: bool

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [self.read(i) for i in ids.tolist()]

    @abstractmethod
    def read(self, i: int) -> str: ...

    def close(self) -> None:  # noqa: B027
        """Give back what `open` took; most rivals hold nothing."""


class Frames(Rival):
    """python-zstandard: one frame per document, offsets in numpy, over mmap."""

    name, checks = "zstandard frames", True

    def build(self, path: Path, texts: list[str]) -> None:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        offsets = [0]
        with path.open("wb") as file:
            for text in texts:
                file.write(compressor.compress(text.encode()))
                offsets.append(file.tell())
            np.save(file, np.array(offsets, np.int64))

    def open(self, path: Path) -> None:
        import mmap

        import zstandard

        size = path.stat().st_size
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            count = COUNT[0] + 1
            file.seek(size - 8 * count)
            self.offsets = np.frombuffer(file.read(8 * count), np.int64).tolist()
        self.view = memoryview(self.map)
        self.decompressor = zstandard.ZstdDecompressor()

    def read(self, i: int) -> str:
        return self.decompressor.decompress(self.view[self.offsets[i] : self.offsets[i + 1]]).decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        frames = [self.view[self.offsets[i] : self.offsets[i + 1]] for i in ids.tolist()]
        decoded = self.decompressor.multi_decompress_to_buffer(frames, threads=-1)
        return [str(segment.tobytes(), "utf-8") for segment in decoded]


class Lmdb(Rival):
    name, checks = "lmdb + zstd", True

    def build(self, path: Path, texts: list[str]) -> None:
        import lmdb
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        environment = lmdb.open(str(path), map_size=1 << 34, subdir=False, lock=False)
        with environment.begin(write=True) as transaction:
            for i, text in enumerate(texts):
                transaction.put(i.to_bytes(8, "big"), compressor.compress(text.encode()), append=True)
        environment.sync(True)
        environment.close()

    def open(self, path: Path) -> None:
        import lmdb
        import zstandard

        self.environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        self.transaction = self.environment.begin(buffers=True)
        self.decompressor = zstandard.ZstdDecompressor()

    def read(self, i: int) -> str:
        return self.decompressor.decompress(self.transaction.get(i.to_bytes(8, "big"))).decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        get = self.transaction.get
        frames = [get(i.to_bytes(8, "big")) for i in ids.tolist()]
        decoded = self.decompressor.multi_decompress_to_buffer(frames, threads=-1)
        return [str(segment.tobytes(), "utf-8") for segment in decoded]

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


class Bagz(Rival):
    name, checks = "bagz", False

    def build(self, path: Path, texts: list[str]) -> None:
        import bagz

        options = bagz.Writer.Options(compression=bagz.CompressionZstd(level=LEVEL))
        with bagz.Writer(str(path), options) as writer:
            for text in texts:
                writer.write(text.encode())

    def open(self, path: Path) -> None:
        import bagz

        self.reader = bagz.Reader(str(path), bagz.Reader.Options(compression=bagz.CompressionZstd()))

    def read(self, i: int) -> str:
        return str(self.reader[i], "utf-8")

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [text.decode() for text in self.reader.read_indices(ids)]


class ArrayRecord(Rival):
    name, checks = "array-record, group 1", True
    options = f"group_size:1,zstd:{LEVEL}"

    def build(self, path: Path, texts: list[str]) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), self.options)
        for text in texts:
            writer.write(text.encode())
        writer.close()

    def open(self, path: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.single = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        self.batch = ArrayRecordReader(str(path), "readahead_buffer_size:0")

    def read(self, i: int) -> str:
        self.single.seek(i)
        return self.single.read().decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [text.decode() for text in self.batch.read(ids.tolist())]

    def close(self) -> None:
        self.single.close()
        self.batch.close()


class ArrayRecordGroups(ArrayRecord):
    name = "array-record, group 16"
    options = f"group_size:16,zstd:{LEVEL}"


class JsonLines(Rival):
    name, checks = "JSONL + offsets", False

    def build(self, path: Path, texts: list[str]) -> None:
        offsets = [0]
        with path.open("wb") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                offsets.append(file.tell())
            file.write(np.array(offsets, np.int64).tobytes())

    def open(self, path: Path) -> None:
        import mmap

        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.offsets = np.frombuffer(self.map[-8 * (COUNT[0] + 1) :], np.int64).tolist()

    def read(self, i: int) -> str:
        text: str = json.loads(self.map[self.offsets[i] : self.offsets[i + 1]])["text"]
        return text


class Arrow(Rival):
    name, checks = "datasets (Arrow)", False

    def build(self, path: Path, texts: list[str]) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(path))

    def open(self, path: Path) -> None:
        import datasets

        self.data = datasets.load_from_disk(str(path))

    def read(self, i: int) -> str:
        text: str = self.data[i]["text"]
        return text

    def read_many(self, ids: np.ndarray) -> list[str]:
        return list(self.data[ids]["text"])


class IndexedZstd(Rival):
    """indexed_zstd over frames of at least 64 KiB of text, with offsets of the documents in the whole text."""

    name, checks = "indexed_zstd, 64 KiB", True

    def build(self, path: Path, texts: list[str]) -> None:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        offsets, waiting = [0], b""
        with path.open("wb") as file:
            for text in texts:
                data = text.encode()
                offsets.append(offsets[-1] + len(data))
                waiting += data
                if len(waiting) >= 1 << 16:
                    file.write(compressor.compress(waiting))
                    waiting = b""
            file.write(compressor.compress(waiting))
        np.array(offsets, np.int64).tofile(path.with_suffix(".offsets"))

    def open(self, path: Path) -> None:
        from indexed_zstd import IndexedZstdFile

        self.file = IndexedZstdFile(str(path))
        self.offsets = np.fromfile(path.with_suffix(".offsets"), np.int64).tolist()

    def read(self, i: int) -> str:
        self.file.seek(self.offsets[i])
        return str(self.file.read(self.offsets[i + 1] - self.offsets[i]), "utf-8")

    def close(self) -> None:
        self.file.close()


CONTESTANTS: list[Callable[[], Any]] = [
    Ours,
    OursPread,
    OursNoDictionary,
    Frames,
    Lmdb,
    Bagz,
    ArrayRecord,
    ArrayRecordGroups,
    JsonLines,
    Arrow,
    IndexedZstd,
]
COUNT = [0]  # documents, for the formats that need to be told


def load(path: Path, mean: float | None) -> list[str]:
    from tttnn.store.corpus import iter_jsonl

    texts = [document.text for document in iter_jsonl(path)]
    if mean is not None:
        # The longest documents are left out until the mean is reached; order is kept.
        sizes = np.array([len(text.encode()) for text in texts])
        by_size = np.argsort(sizes, kind="stable")
        means = np.cumsum(sizes[by_size]) / np.arange(1, len(sizes) + 1)
        kept = np.sort(by_size[: int(np.searchsorted(means, mean))])
        texts = [texts[i] for i in kept]
    COUNT[0] = len(texts)
    return texts


def size_of(path: Path) -> int:
    files = list(path.rglob("*")) if path.is_dir() else [path, path.with_suffix(".offsets")]
    return sum(file.stat().st_size for file in files if file.is_file())


def drop_from_cache(path: Path) -> None:
    for file in list(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def resident(name: str, path: Path, count: int) -> float:
    """Megabytes, without mapped files, that 1000 reads add to a fresh process."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "import bench_store as b, numpy as np\nfrom pathlib import Path\n"
        f"b.COUNT[0] = {count}\n"
        f"c = next(c for c in b.CONTESTANTS if c.name == {name!r})()\n"
        # Import what the contestant needs before the first measurement.
        f"path = Path({str(path)!r})\n"
        "c.open(path); c.read(0); c.close(); c.open(path)\n"
        "before = b.resident_now()[0]\n"
        f"for i in np.random.default_rng(5).integers(0, {count}, 1000).tolist(): c.read(i)\n"
        "print(b.resident_now()[0] - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout)


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = clock()
    value = call()
    return clock() - begin, value


def compare(corpus: Path, mean: float | None, repeats: int, only: Sequence[str]) -> None:
    texts = load(corpus, mean)
    count = len(texts)
    size = sum(len(text.encode()) for text in texts)
    print(
        f"{corpus.name}: {count} documents, mean {size / count:.0f} bytes, {os.cpu_count()} cores, "
        f"{platform.platform()}"
    )
    rng = np.random.default_rng(0)
    singles = rng.integers(0, count, 2000)
    fifties = rng.integers(0, count, (40, 50))
    many = rng.choice(count, min(10_000, count), replace=False)
    cold = rng.integers(0, count, 200)
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    runs: list[tuple[Any, Path, dict[str, Any]]] = []
    for number, make in enumerate(CONTESTANTS):
        contestant = make()
        if only and contestant.name not in only:
            continue
        path = folder / f"{number}.store"
        try:
            seconds, _ = timed(lambda c=contestant, p=path: c.build(p, texts))  # type: ignore[misc]
            contestant.open(path)
            assert contestant.read(count // 2) == texts[count // 2]
        except ImportError as error:
            print(f"{contestant.name}: left out, {error}")
            continue
        row: dict[str, Any] = {"build": [seconds], "size": size_of(path)}
        row.update({name: [] for name in ("p50", "p99", "fifty", "many", "cold", "open")})
        runs.append((contestant, path, row))
    limits: dict[str, list[float]] = {"p50": [], "p99": [], "mean": []}
    for repeat in range(repeats):
        for contestant, path, row in runs:
            if isinstance(contestant, IndexedZstd) and repeat > 0:
                continue  # a hundred times slower: once is enough
            latencies = []
            got = []
            for i in singles.tolist():
                begin = clock()
                text = contestant.read(i)
                latencies.append(clock() - begin)
                got.append(text)
            assert got == [texts[i] for i in singles]
            row["p50"].append(float(np.percentile(latencies, 50)))
            row["p99"].append(float(np.percentile(latencies, 99)))
            seconds, batches = timed(lambda c=contestant: [c.read_many(ids) for ids in fifties])  # type: ignore[misc]
            assert batches == [[texts[i] for i in ids] for ids in fifties]
            row["fifty"].append(seconds / len(fifties))
            del batches
            seconds, batch = timed(lambda c=contestant: c.read_many(many))  # type: ignore[misc]
            assert batch == [texts[i] for i in many]
            row["many"].append(seconds)
            del batch, got
            contestant.close()
            seconds, _ = timed(lambda c=contestant, p=path: c.open(p))  # type: ignore[misc]
            row["open"].append(seconds)
            if isinstance(contestant, Ours) and contestant.name == "tttnn":
                alone = contestant.store._reader.time_decoding(singles)
                limits["p50"].append(float(np.percentile(alone, 50)))
                limits["p99"].append(float(np.percentile(alone, 99)))
                limits["mean"].append(float(contestant.store._reader.time_decoding(many).mean()))
    for _ in range(3):
        for contestant, path, row in runs:
            contestant.close()
            drop_from_cache(path)
            contestant.open(path)
            seconds, batch = timed(lambda c=contestant: c.read_many(cold))  # type: ignore[misc]
            assert batch == [texts[i] for i in cold]
            row["cold"].append(seconds)
    middle = statistics.median
    smallest = min(row["size"] for _, _, row in runs)
    line("", "checks", "build s", "size", "single p50 µs", "p99 µs", "batch of 50 µs", f"batch of {len(many)} ms",
         "cold 200 ms", "open µs", "memory MB")  # fmt: skip
    line("---", "---", *["---:"] * 9)
    if limits["p50"]:
        average = middle(limits["mean"])
        line("limit: zstd alone, 1 thread", "", "", "", f"{middle(limits['p50']) * 1e6:.1f}",
             f"{middle(limits['p99']) * 1e6:.0f}", f"{average * 50e6:.0f}", f"{average * len(many) * 1e3:.0f}",
             "", "", "")  # fmt: skip
    for contestant, path, row in runs:
        spread = (max(row["p50"]) - min(row["p50"])) / 2
        contestant.close()
        line(contestant.name, "yes" if contestant.checks else "no", f"{middle(row['build']):.1f}",
             f"{row['size'] / smallest:.3f}", f"{middle(row['p50']) * 1e6:.1f} ± {spread * 1e6:.1f}",
             f"{middle(row['p99']) * 1e6:.0f}", f"{middle(row['fifty']) * 1e6:.0f}", f"{middle(row['many']) * 1e3:.0f}",
             f"{middle(row['cold']) * 1e3:.1f}", f"{middle(row['open']) * 1e6:.0f}",
             f"{resident(contestant.name, path, count):.1f}")  # fmt: skip
    print(f"smallest: {smallest} bytes, {smallest / size:.4f} of the text")
    ours = next((c for c, _, _ in runs if c.name == "tttnn"), None)
    if ours is not None:
        by_kind(ours, runs[0][1], texts, repeats)
    shutil.rmtree(folder)


def by_kind(ours: Ours, path: Path, texts: list[str], repeats: int) -> None:
    """Our reads against the limit, apart for ASCII, other texts and bytes; threads 1 and all."""
    ours.open(path)
    reader = ours.store._reader
    ids = np.random.default_rng(2).choice(len(texts), min(4000, len(texts)), replace=False)
    ascii_only = np.array([texts[i].isascii() for i in ids])
    line("texts", "limit p50 µs", "single p50 µs", "limit mean µs", "batch, 1 thread", "batch, all threads",
         "batch as bytes")  # fmt: skip
    line("---", *["---:"] * 6)
    for name, chosen in (("ASCII", ids[ascii_only]), ("other", ids[~ascii_only])):
        columns: list[list[float]] = [[] for _ in range(6)]
        for _ in range(repeats):
            alone = reader.time_decoding(chosen)
            latencies = []
            for i in chosen.tolist():
                begin = clock()
                reader.read_text(i)
                latencies.append(clock() - begin)
            one, _ = timed(lambda c=chosen: reader.read_texts(c, 1))  # type: ignore[misc]
            all_threads, _ = timed(lambda c=chosen: reader.read_texts(c, 0))  # type: ignore[misc]
            as_bytes, _ = timed(lambda c=chosen: reader.read_bytes(c, 0))  # type: ignore[misc]
            values = (float(np.median(alone)), float(np.median(latencies)), float(alone.mean()),
                      one / len(chosen), all_threads / len(chosen), as_bytes / len(chosen))  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value * 1e6)
        line(name, *[f"{statistics.median(column):.2f}" for column in columns])
    ours.close()


def units(corpus: Path) -> None:
    """Compare the units of compression: a frame per document, with dictionaries, against blocks of several documents.

    Done with python-zstandard, so that nothing but the unit differs; a block is decoded whole to read one document.
    """
    whole = [text.encode() for text in load(corpus, None)]
    rng = np.random.default_rng(1)
    short = [part.strip()[:2000] for text in whole for part in text.split(b"\n\n") if len(part.strip()) >= 100]
    short = [short[i] for i in rng.permutation(len(short))[:100_000]]
    line("corpus", "unit", "size / text", "build s", "read mean µs", "read p50 µs")
    line("---", "---", *["---:"] * 4)
    for name, texts in ((corpus.name, whole), ("its paragraphs", short)):
        import zstandard

        total = sum(map(len, texts))
        probe = rng.integers(0, len(texts), 3000).tolist()
        order = rng.permutation(len(texts)).tolist()

        def show(
            unit: str, frames: list[bytes], where: Sequence[int], decoder: Any, seconds: float, extra: int = 0,
            name: str = name, total: int = total, probe: list[int] = probe,
        ) -> None:  # fmt: skip
            best: list[float] = []
            for _ in range(5):
                latencies = []
                for i in probe:
                    begin = clock()
                    decoder.decompress(frames[where[i]])
                    latencies.append(clock() - begin)
                best = min(best, latencies, key=sum) if best else latencies
            mean, middle = statistics.mean(best), statistics.median(best)
            line(f"{name}, mean {total / len(where):.0f}", unit, f"{(sum(map(len, frames)) + extra) / total:.4f}",
                 f"{seconds:.1f}", f"{mean * 1e6:.1f}", f"{middle * 1e6:.1f}")  # fmt: skip

        for size in (0, 16, 32, 64, 128, 256):
            for sample in ("spread", "first") if size == 128 else ("spread",):
                options: dict[str, Any] = {}
                if size:
                    chosen, taken = [], 0
                    for i in order if sample == "spread" else range(len(texts)):
                        chosen.append(texts[i][: 1 << 16])
                        taken += len(chosen[-1])
                        if taken > 100 * size << 10:
                            break
                    options["dict_data"] = zstandard.train_dictionary(size << 10, chosen, k=1024, d=8)
                compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_dict_id=False, **options)
                seconds, frames = timed(lambda c=compressor, t=texts: [c.compress(text) for text in t])  # type: ignore[misc]
                decoder = zstandard.ZstdDecompressor(**options)
                unit = f"frame, dictionary {size} KiB ({sample})" if size else "frame"
                show(unit, frames, range(len(texts)), decoder, seconds, size << 10)
        for size in (16, 32, 64, 128):
            blocks: list[list[bytes]] = [[]]
            where = []
            for text in texts:
                if sum(map(len, blocks[-1])) >= size << 10:
                    blocks.append([])
                where.append(len(blocks) - 1)
                blocks[-1].append(text)
            compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
            seconds, frames = timed(lambda c=compressor, b=blocks: [c.compress(b"".join(block)) for block in b])  # type: ignore[misc]
            show(f"block of {size} KiB", frames, where, zstandard.ZstdDecompressor(), seconds)


def scaling(corpus: Path) -> None:
    """Batches as a share of the limit times the number of threads: fresh sorted ids for each round."""
    from tttnn.store.text_store import TextStore

    texts = load(corpus, None)
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    Ours().build(folder / "store", texts)
    reader = TextStore.open(folder / "store")._reader
    ascii_only = np.array([text.isascii() for text in texts])
    rng = np.random.default_rng(0)
    line("texts", "batch", "limit µs a document", "bytes, 1 thread", "bytes, 2", "str, 1 thread", "str, 2")
    line("---", *["---:"] * 6)
    for name, pool in (("ASCII", np.flatnonzero(ascii_only)), ("other", np.flatnonzero(~ascii_only))):
        for size, rounds in ((50, 60), (len(pool) // 2, 7)):
            limit: list[float] = []
            seconds: dict[tuple[str, int], list[float]] = {(r, t): [] for r in ("bytes", "texts") for t in (1, 2)}
            for _ in range(rounds):
                ids = np.sort(rng.choice(pool, size, replace=False))
                limit.append(float(reader.time_decoding(ids).sum()))
                for (kind, threads), column in seconds.items():
                    read = getattr(reader, f"read_{kind}")
                    taken, batch = timed(lambda r=read, i=ids, t=threads: r(i, t))  # type: ignore[misc]
                    column.append(taken)
                    del batch
            whole = statistics.median(limit)
            line(name, size, f"{whole / size * 1e6:.1f}",
                 *[f"{whole / statistics.median(column) / t:.2f}" for (_, t), column in seconds.items()])  # fmt: skip
    shutil.rmtree(folder)


def opening() -> None:
    """Open time and memory at 10 thousand and at 10 million short documents."""
    from tttnn.config import StoreConfig
    from tttnn.store.text_store import TextStore
    from tttnn.store.writer import TextStoreWriter

    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    line("documents", "build s", "bytes a document", "index bytes a document", "open µs", "first read µs",
         "own MB that 1000 reads add", "mapped MB")  # fmt: skip
    line(*["---:"] * 8)
    for count in (10_000, 10_000_000):
        path = folder / f"{count}.zst"
        begin = clock()
        with TextStoreWriter(path, config=StoreConfig(level=1)) as writer:
            for i in range(count):
                writer.append(f"document {i} speaks of {i * 2654435761 % 1000003}")
        build = clock() - begin
        opens, reads = [], []
        for _ in range(50):
            seconds, store = timed(lambda p=path: TextStore.open(p))  # type: ignore[misc]
            opens.append(seconds)
            reads.append(timed(lambda s=store, c=count: s.read_text(c // 3))[0])  # type: ignore[misc]
        own, mapped = resident_now()
        for i in np.random.default_rng(1).integers(0, count, 1000).tolist():
            assert store.read_text(i).startswith(f"document {i} ")
        own_after, mapped_after = resident_now()
        info = store.info()
        line(
            count,
            f"{build:.1f}",
            f"{info['file_bytes'] / count:.1f}",
            f"{info['index_bytes'] / count:.2f}",
            f"{statistics.median(opens) * 1e6:.0f}",
            f"{statistics.median(reads) * 1e6:.0f}",
            f"{own_after - own:.1f}",
            f"{mapped_after - mapped:.1f}",
        )
    shutil.rmtree(folder)


def resident_now() -> tuple[float, float]:
    """Megabytes of this process: its own, and of files that it maps and that others may share."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) / 1024, int(rows["RssFile"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--mean", type=float, help="leave out the longest documents until the mean size is this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="names, separated by semicolons")
    parser.add_argument("--units", action="store_true", help="a frame per document against blocks")
    parser.add_argument("--scaling", action="store_true", help="batches against the limit times the threads")
    parser.add_argument("--opening", action="store_true", help="opening at 10 thousand and 10 million documents")
    arguments = parser.parse_args()
    if arguments.opening:
        opening()
    if arguments.units:
        units(arguments.corpus)
    elif arguments.scaling:
        scaling(arguments.corpus)
    elif arguments.corpus is not None:
        compare(arguments.corpus, arguments.mean, arguments.repeats, [n for n in arguments.only.split(";") if n])


if __name__ == "__main__":
    main()
