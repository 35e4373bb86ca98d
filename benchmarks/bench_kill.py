"""A build killed by SIGKILL at random moments, at least once inside each stage, and resumed each time.

Run: python benchmarks/bench_kill.py CORPUS [--documents 1000] [--kills 20] [--unit document] [--out kill.json]

First the build runs uninterrupted in a process of its own, which says how long each stage takes. Then it is begun
again and again over one directory: each kill aims at a stage, and strikes at a seeded random moment after the stage
began. The stage that was under way when the kill struck is what the process had told last. A build that ends before
its kill is compared and begun anew, until there were as many kills as asked for and one in each stage. At the end every
file and every answer to 20 searches must equal those of the uninterrupted build.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import tttnn
from tttnn.store.corpus import iter_corpus
from tttnn.store.document import Document

MOST_RUNS = 200


def build(corpus: str, path: str, documents: int, unit: str, encoder: str) -> None:
    """Build in this process; tell each stage's progress on standard output."""

    def tell(stage: str, done: int, total: int | None) -> None:
        print(stage, done, flush=True)

    def read() -> list[Document]:
        return list(itertools.islice(iter_corpus(corpus), documents))

    embedder = tttnn.Embedder.load(encoder)
    config = tttnn.DatastoreConfig(unit=unit, segment_documents=max(1, documents // 3))  # type: ignore[arg-type]
    print("start 0", flush=True)
    tttnn.Datastore.build(path, read, embedder, config=config, progress=tell)
    print("end 0", flush=True)


def start(options: argparse.Namespace, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, options.corpus, "--build-into", str(path)]
    command += ["--documents", str(options.documents), "--unit", options.unit, "--encoder", options.encoder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def contents(path: Path) -> dict[str, str]:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def answers(path: Path, encoder: str) -> list[Any]:
    with tttnn.Datastore.open(path, tttnn.Embedder.load(encoder)) as datastore:
        step = max(1, len(datastore) // 20)
        queries = [datastore.store[i].text[:300] for i in range(0, len(datastore), step)][:20]
        queries = [query for query in queries if query.strip()]
        return [[(n.id, n.distance) for n in found] for found in datastore.search_many(queries, 10)]


def uninterrupted(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Return the seconds of each stage, in their order."""
    seconds: dict[str, float] = {}
    process = start(options, path)
    assert process.stdout is not None
    before = None
    for line in process.stdout:
        stage = line.split()[0]
        now = time.perf_counter()
        if before is not None and stage != "start":
            # The work before the first report of a stage is its own.
            name = "finish" if stage == "end" else stage
            seconds[name] = seconds.get(name, 0.0) + now - before
        before = now
    if process.wait() != 0:
        raise SystemExit("the uninterrupted build failed")
    return seconds


def killed(options: argparse.Namespace, path: Path, aim: str, wait: float) -> str | None:
    """Run the build and kill it `wait` seconds after it told of the stage `aim`; return the last stage it told of.

    None where the build ended before that.
    """
    process = start(options, path)
    assert process.stdout is not None
    last = "start"
    for line in process.stdout:
        last = line.split()[0]
        if last == aim:
            break
    if last == "end":
        process.wait()
        return None
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    if process.wait() == 0:
        return None
    told = [line.split()[0] for line in rest if line.strip()]
    return told[-1] if told else last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unit", default="document", choices=["document", "passage"])
    parser.add_argument("--encoder", default="minilm-l6")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--build-into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build_into is not None:
        build(options.corpus, options.build_into, options.documents, options.unit, options.encoder)
        return
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, path = Path(folder, "whole"), Path(folder, "killed")
        seconds = uninterrupted(options, whole)
        print("uninterrupted:", ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)
        expected, told = contents(whole), answers(whole, options.encoder)
        stages = [name for name in seconds if name != "finish"]
        kills: Counter[str] = Counter()
        completed = runs = 0
        while sum(kills.values()) < options.kills or set(kills) < set(stages):
            runs += 1
            assert runs <= MOST_RUNS, f"no kill inside {set(stages) - set(kills)}"
            missing = [name for name in stages if not kills[name]]
            aim = missing[0] if missing else str(rng.choice(stages))
            stage = killed(options, path, aim, float(rng.uniform(0, 0.8)) * seconds[aim])
            if stage is None:
                completed += 1
                assert contents(path) == expected, "a completed build differs"
                shutil.rmtree(path)
                continue
            kills[stage] += 1
            print(f"kill {sum(kills.values())}: aimed at {aim}, struck in {stage}", flush=True)
        process = start(options, path)
        process.communicate()
        assert process.returncode == 0
        differing = {name for name, digest in contents(path).items() if expected.get(name) != digest}
        assert not differing, differing
        assert contents(path) == expected
        assert answers(path, options.encoder) == told
    result = {
        "documents": options.documents,
        "unit": options.unit,
        "kills": dict(kills),
        "completed_between": completed,
        "files": len(expected),
        "same": True,
    }
    print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result | {"seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
