"""Compare the text store with its rivals: the same documents, the same order, level 6, in one interleaved run.

    python benchmarks/bench_store.py CORPUS.jsonl.zst [--mean 5900] [--repeats 7] [--only 'tttnn;bagz']

Every read is compared with what was written, outside the timed part. Texts come back as str in every column but
"limit", which is zstd's own decoding, by python-zstandard, of frames made of the same texts with the store's dictionary
and level. A rival that is not installed is left out. "checks" says whether a read would notice a flipped byte.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from store_rivals import CONTESTANTS, COUNT, LEVEL, IndexedZstd, Ours

clock = time.perf_counter


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


class Limit:
    """What zstd alone needs for a text: frames as the store's, each decoded by itself."""

    def __init__(self, store: Any, texts: list[str]) -> None:
        import zstandard

        options = {}
        if len(store._reader.dictionary()) > 0:
            options["dict_data"] = zstandard.ZstdCompressionDict(store._reader.dictionary())
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_dict_id=False, **options)
        self._frames = [compressor.compress(text.encode()) for text in texts]
        self._decoder = zstandard.ZstdDecompressor(**options)

    def seconds(self, ids: np.ndarray) -> np.ndarray:
        """Return what each of these texts takes."""
        decode = self._decoder.decompress
        return np.array([timed(lambda f=self._frames[i]: decode(f))[0] for i in ids.tolist()])  # type: ignore[misc]


class Inputs:
    """Which documents are read: alone, in batches of fifty, in one large batch, and from a cold cache."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.singles = rng.integers(0, count, 2000)
        self.fifties = rng.integers(0, count, (40, 50))
        self.many = rng.choice(count, min(10_000, count), replace=False)
        self.cold = rng.integers(0, count, 200)


class Run:
    """One contestant, its file and what was measured of it."""

    def __init__(self, contestant: Any, path: Path, build: float) -> None:
        self.contestant = contestant
        self.path = path
        self.build = build
        self.size = size_of(path)
        self.seconds: dict[str, list[float]] = {name: [] for name in ("p50", "p99", "fifty", "many", "cold", "open")}

    def warm(self, texts: list[str], inputs: Inputs) -> None:
        """Read everything once, and open the file again."""
        latencies, got = [], []
        for i in inputs.singles.tolist():
            begin = clock()
            text = self.contestant.read(i)
            latencies.append(clock() - begin)
            got.append(text)
        assert got == [texts[i] for i in inputs.singles]
        self.seconds["p50"].append(float(np.percentile(latencies, 50)))
        self.seconds["p99"].append(float(np.percentile(latencies, 99)))
        seconds, batches = timed(lambda: [self.contestant.read_many(ids) for ids in inputs.fifties])
        assert batches == [[texts[i] for i in ids] for ids in inputs.fifties]
        self.seconds["fifty"].append(seconds / len(inputs.fifties))
        seconds, batch = timed(lambda: self.contestant.read_many(inputs.many))
        assert batch == [texts[i] for i in inputs.many]
        self.seconds["many"].append(seconds)
        self.contestant.close()
        self.seconds["open"].append(timed(lambda: self.contestant.open(self.path))[0])

    def cold(self, texts: list[str], inputs: Inputs) -> None:
        """Read what is not in the page cache."""
        self.contestant.close()
        drop_from_cache(self.path)
        self.contestant.open(self.path)
        seconds, batch = timed(lambda: self.contestant.read_many(inputs.cold))
        assert batch == [texts[i] for i in inputs.cold]
        self.seconds["cold"].append(seconds)


def built(folder: Path, texts: list[str], only: Sequence[str]) -> list[Run]:
    """Let every contestant that is installed and asked for write its file."""
    runs = []
    for number, make in enumerate(CONTESTANTS):
        contestant = make()
        if only and contestant.name not in only:
            continue
        path = folder / f"{number}.store"
        try:
            seconds, _ = timed(lambda c=contestant, p=path: c.build(p, texts))  # type: ignore[misc]
            contestant.open(path)
            assert contestant.read(len(texts) // 2) == texts[len(texts) // 2]
        except ImportError as error:
            print(f"{contestant.name}: left out, {error}")
            continue
        runs.append(Run(contestant, path, seconds))
    return runs


def compare(corpus: Path, mean: float | None, repeats: int, only: Sequence[str]) -> None:
    texts = load(corpus, mean)
    count = len(texts)
    size = sum(len(text.encode()) for text in texts)
    print(
        f"{corpus.name}: {count} documents, mean {size / count:.0f} bytes, {os.cpu_count()} cores, "
        f"{platform.platform()}"
    )
    inputs = Inputs(count)
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    runs = built(folder, texts, only)
    ours = next((run for run in runs if run.contestant.name == "tttnn"), None)
    limit = None if ours is None else Limit(ours.contestant.store, texts)
    limits: list[tuple[np.ndarray, np.ndarray]] = []
    for repeat in range(repeats):
        for run in runs:
            if isinstance(run.contestant, IndexedZstd) and repeat > 0:
                continue  # a hundred times slower: once is enough
            run.warm(texts, inputs)
        if limit is not None:
            limits.append((limit.seconds(inputs.singles), limit.seconds(inputs.many)))
    for _ in range(3):
        for run in runs:
            run.cold(texts, inputs)
    smallest = show(runs, limits, inputs, count)
    print(f"smallest: {smallest} bytes, {smallest / size:.4f} of the text")
    if ours is not None and limit is not None:
        by_kind(ours.contestant, ours.path, texts, repeats, limit)
    shutil.rmtree(folder)


def show(runs: list[Run], limits: list[tuple[np.ndarray, np.ndarray]], inputs: Inputs, count: int) -> int:
    """Print a line for each contestant; return the bytes of the smallest file."""
    middle = statistics.median
    smallest = min(run.size for run in runs)
    many = len(inputs.many)
    line("", "checks", "build s", "size", "single p50 µs", "p99 µs", "batch of 50 µs", f"batch of {many} ms",
         "cold 200 ms", "open µs", "memory MB")  # fmt: skip
    line("---", "---", *["---:"] * 9)
    if limits:
        average = middle(float(batch.mean()) for _, batch in limits)
        p50, p99 = (middle(float(np.percentile(alone, p)) for alone, _ in limits) for p in (50, 99))
        line("limit: zstd alone, 1 thread", "", "", "", f"{p50 * 1e6:.1f}", f"{p99 * 1e6:.0f}",
             f"{average * 50e6:.0f}", f"{average * many * 1e3:.0f}", "", "", "")  # fmt: skip
    for run in runs:
        seconds = run.seconds
        spread = (max(seconds["p50"]) - min(seconds["p50"])) / 2
        run.contestant.close()
        line(run.contestant.name, "yes" if run.contestant.checks else "no", f"{run.build:.1f}",
             f"{run.size / smallest:.3f}", f"{middle(seconds['p50']) * 1e6:.1f} ± {spread * 1e6:.1f}",
             f"{middle(seconds['p99']) * 1e6:.0f}", f"{middle(seconds['fifty']) * 1e6:.0f}",
             f"{middle(seconds['many']) * 1e3:.0f}", f"{middle(seconds['cold']) * 1e3:.1f}",
             f"{middle(seconds['open']) * 1e6:.0f}",
             f"{resident(run.contestant.name, run.path, count):.1f}")  # fmt: skip
    return smallest


def by_kind(ours: Ours, path: Path, texts: list[str], repeats: int, limit: Limit) -> None:
    """Our reads against the limit, apart for ASCII and other texts; threads 1 and all."""
    ours.open(path)
    reader = ours.store._reader
    ids = np.random.default_rng(2).choice(len(texts), min(4000, len(texts)), replace=False)
    ascii_only = np.array([texts[i].isascii() for i in ids])
    line("texts", "limit p50 µs", "single p50 µs", "limit mean µs", "batch, 1 thread", "batch, all threads")
    line("---", *["---:"] * 5)
    for name, chosen in (("ASCII", ids[ascii_only]), ("other", ids[~ascii_only])):
        if len(chosen) == 0:
            continue
        columns: list[list[float]] = [[] for _ in range(5)]
        for _ in range(repeats):
            alone = limit.seconds(chosen)
            latencies = []
            for i in chosen.tolist():
                begin = clock()
                reader.read_text(i)
                latencies.append(clock() - begin)
            one, _ = timed(lambda c=chosen: reader.read_texts(c, 1))  # type: ignore[misc]
            all_threads, _ = timed(lambda c=chosen: reader.read_texts(c, 0))  # type: ignore[misc]
            values = (float(np.median(alone)), float(np.median(latencies)), float(alone.mean()),
                      one / len(chosen), all_threads / len(chosen))  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value * 1e6)
        line(name, *[f"{statistics.median(column):.2f}" for column in columns])
    ours.close()


def resident_now() -> tuple[float, float]:
    """Megabytes of this process: its own, and of files that it maps and that others may share."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) / 1024, int(rows["RssFile"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a .jsonl or .jsonl.zst file")
    parser.add_argument("--mean", type=float, help="leave out the longest documents until the mean size is this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="names, separated by semicolons")
    arguments = parser.parse_args()
    compare(arguments.corpus, arguments.mean, arguments.repeats, [n for n in arguments.only.split(";") if n])


if __name__ == "__main__":
    main()
