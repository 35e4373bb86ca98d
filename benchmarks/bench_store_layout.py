"""What the text store's layout rests on: the unit of compression, batches over threads, and opening large files.

python benchmarks/bench_store_layout.py --units CORPUS.jsonl.zst
python benchmarks/bench_store_layout.py --scaling CORPUS.jsonl.zst
python benchmarks/bench_store_layout.py --opening          # 10 thousand and 10 million short documents
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from bench_store import Limit, clock, line, load, resident_now, timed
from store_rivals import LEVEL, Ours


def dictionary(texts: list[bytes], order: Iterable[int], kilobytes: int) -> Any:
    """Train a dictionary on a hundred times its size of text, at most 64 KiB of each."""
    import zstandard

    chosen: list[bytes] = []
    taken = 0
    for i in order:
        chosen.append(texts[i][: 1 << 16])
        taken += len(chosen[-1])
        if taken > 100 * kilobytes << 10:
            break
    return zstandard.train_dictionary(kilobytes << 10, chosen, k=1024, d=8)


class UnitTable:
    """One corpus in frames of several kinds: a line each of their size and of what reading a text costs."""

    def __init__(self, name: str, texts: list[bytes], probe: list[int]) -> None:
        self._name = name
        self._texts = texts
        self._total = sum(map(len, texts))
        self._probe = probe

    def show(
        self, unit: str, parts: list[bytes], where: Sequence[int], options: dict[str, Any], extra: int, **written: Any
    ) -> None:
        """Compress `parts`, of which part where[i] has text i; `extra` bytes are stored beside."""
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, **written, **options)
        seconds, frames = timed(lambda: [compressor.compress(part) for part in parts])
        decoder = zstandard.ZstdDecompressor(**options)
        best: list[float] = []
        for _ in range(5):
            latencies = []
            for i in self._probe:
                begin = clock()
                decoder.decompress(frames[where[i]])
                latencies.append(clock() - begin)
            best = min(best, latencies, key=sum) if best else latencies
        mean, middle = statistics.mean(best), statistics.median(best)
        line(f"{self._name}, mean {self._total / len(where):.0f}", unit,
             f"{(sum(map(len, frames)) + extra) / self._total:.4f}",
             f"{seconds:.1f}", f"{mean * 1e6:.1f}", f"{middle * 1e6:.1f}")  # fmt: skip


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
        table = UnitTable(name, texts, rng.integers(0, len(texts), 3000).tolist())
        order = rng.permutation(len(texts)).tolist()
        alone = range(len(texts))
        table.show("frame", texts, alone, {}, 0, write_dict_id=False)
        for size in (16, 32, 64, 128, 256):
            for sample in ("spread", "first") if size == 128 else ("spread",):
                options = {"dict_data": dictionary(texts, order if sample == "spread" else alone, size)}
                unit = f"frame, dictionary {size} KiB ({sample})"
                table.show(unit, texts, alone, options, size << 10, write_dict_id=False)
        for size in (16, 32, 64, 128):
            blocks: list[list[bytes]] = [[]]
            where = []
            for text in texts:
                if sum(map(len, blocks[-1])) >= size << 10:
                    blocks.append([])
                where.append(len(blocks) - 1)
                blocks[-1].append(text)
            table.show(f"block of {size} KiB", [b"".join(block) for block in blocks], where, {}, 0)


def scaling(corpus: Path) -> None:
    """Batches as a share of the limit times the number of threads: fresh sorted ids for each round."""
    from tttnn.store.text_store import TextStore

    texts = load(corpus, None)
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    Ours().build(folder / "store", texts)
    store = TextStore.open(folder / "store")
    reader, limit_of = store._reader, Limit(store, texts)
    ascii_only = np.array([text.isascii() for text in texts])
    rng = np.random.default_rng(0)
    line("texts", "batch", "limit µs a document", "1 thread", "2 threads")
    line("---", *["---:"] * 4)
    for name, pool in (("ASCII", np.flatnonzero(ascii_only)), ("other", np.flatnonzero(~ascii_only))):
        if len(pool) < 50:
            continue
        for size, rounds in ((50, 60), (len(pool) // 2, 7)):
            limit: list[float] = []
            seconds: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(rounds):
                ids = np.sort(rng.choice(pool, size, replace=False))
                limit.append(float(limit_of.seconds(ids).sum()))
                for threads, column in seconds.items():
                    taken, batch = timed(lambda i=ids, t=threads: reader.read_texts(i, t))  # type: ignore[misc]
                    column.append(taken)
                    del batch
            whole = statistics.median(limit)
            line(name, size, f"{whole / size * 1e6:.1f}",
                 *[f"{whole / statistics.median(column) / t:.2f}" for t, column in seconds.items()])  # fmt: skip
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=Path, metavar="CORPUS", help="a frame per document against blocks")
    parser.add_argument("--scaling", type=Path, metavar="CORPUS", help="batches against the limit times the threads")
    parser.add_argument("--opening", action="store_true", help="opening at 10 thousand and 10 million documents")
    arguments = parser.parse_args()
    if arguments.units is not None:
        units(arguments.units)
    if arguments.scaling is not None:
        scaling(arguments.scaling)
    if arguments.opening:
        opening()


if __name__ == "__main__":
    main()
