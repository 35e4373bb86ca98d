"""A damage table: each file of a datastore flipped, cut, lengthened and exchanged, in a process that must not crash."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tttnn
from tests.test_datastore import LAYOUTS, build, cached_embedder, corpus
from tttnn.errors import DatastoreMismatchError, IndexCorruptError, StoreError

FLIPS = 12  # in each region of a file


def grown(path: Path, seed: int) -> Path:
    """Make a datastore with every kind of file: two segments, one of them compacted, both with deleted documents."""
    made = build(path, corpus(30, seed=seed), **LAYOUTS["passage"])
    made.delete([2, 9])
    made.compact()
    assert made.manifest.datastore_config.segment_documents > 40
    made.append([f"{seed} appended {i % 4}" for i in range(6)])  # equal ones: copies.bin lists them
    made.delete([4, 31])
    made.close()
    return path


def spoiled_copies(path: Path, other: Path, rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Return damaged contents of one file with what was done to it."""
    whole = path.read_bytes()
    # Headers are hit as often as bodies and ends, which are longer.
    regions = [(0, min(96, len(whole))), (0, len(whole)), (max(0, len(whole) - 96), len(whole))]
    copies = []
    for begin, end in regions:
        for at in rng.integers(begin, end, size=FLIPS).tolist():
            bit = int(rng.integers(0, 8))
            copies.append((f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]))
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        copies.append((f"cut to {size} bytes", whole[:size]))
    copies.append(("one byte more", whole + b"\0"))
    if other.exists() and other.read_bytes() != whole:
        copies.append(("the other datastore's", other.read_bytes()))
    return copies


def attack(path: Path, other: Path) -> list[dict[str, Any]]:
    """Open, verify, read and search with each damage; say what came of it."""
    embedder = cached_embedder(3)

    def everything() -> Any:
        with tttnn.Datastore.open(path, embedder) as opened:
            opened.verify()
            found = [(n.id, n.distance, n.text, n.span) for n in opened.search("3 moon cat sort", 60, explain=True)]
            return found, [(d.text, d.meta) for d in opened.store]

    expected = everything()
    rng = np.random.default_rng(0)
    table = []
    for file in sorted(path.rglob("*")):
        if not file.is_file() or file.is_symlink() or file.stat().st_size == 0:
            continue
        whole = file.read_bytes()
        for what, content in spoiled_copies(file, other / file.relative_to(path), rng):
            file.write_bytes(content)
            try:
                outcome = "unchanged" if everything() == expected else "WRONG ANSWER"
            except (IndexCorruptError, StoreError, DatastoreMismatchError) as error:
                # A whole manifest of another datastore is sound: what disagrees with it is named.
                exchanged = file.name == "manifest.json" and what.startswith("the other") and str(path) in str(error)
                outcome = "named" if file.name in str(error) or exchanged else f"NOT NAMED: {error}"
            except Exception as error:  # the table says which
                outcome = f"WRONG ERROR: {error!r}"
            table.append({"file": str(file.relative_to(path)), "what": what, "outcome": outcome})
        file.write_bytes(whole)
    assert everything() == expected
    return table


def test_every_damage_is_named_and_none_crashes(tmp_path: Path) -> None:
    for seed, name in ((0, "a"), (1, "b")):
        grown(tmp_path / name, seed)
    code = "import sys; from tests import test_damage; test_damage.main(*sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, str(tmp_path / "a"), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    table = json.loads(ran.stdout.splitlines()[-1])
    names = {Path(row["file"]).name for row in table}
    assert names >= {"manifest.json", "texts.zst", "index.json", "vectors.hnsw", "copies.bin", "passages.bin"} | {
        "ids.bin",
        "deleted.1.bin",
    }
    wrong = [row for row in table if row["outcome"] != "named"]
    assert not wrong
    assert any(row["what"] == "the other datastore's" for row in table if row["file"].endswith("deleted.1.bin"))


def main(path: str, other: str) -> None:
    """Print the table: what the child process runs."""
    print(json.dumps(attack(Path(path), Path(other))))


@pytest.mark.parametrize("name", ["manifest.json", "segments"])
def test_parts_of_two_datastores_do_not_mix(tmp_path: Path, name: str) -> None:
    for seed, folder in ((0, "a"), (1, "b")):
        grown(tmp_path / folder, seed)
    target = tmp_path / "a" / name
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "b" / name, target)
    else:
        shutil.copy(tmp_path / "b" / name, target)
    with pytest.raises((DatastoreMismatchError, IndexCorruptError, StoreError), match="segments/00"):
        tttnn.Datastore.open(tmp_path / "a", cached_embedder(3))
