"""File systems and processes that lack something: descriptors, locks, syncing, space, and the rest of a mapped file."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tttnn
from tests.encoders import tiny_embedder
from tests.test_datastore import corpus
from tttnn.datastore.index import NeighborIndex

TEXTS = [f"text {i} " + "".join(chr(97 + (i * k) % 26) for k in range(400)) for i in range(3000)]


def write(path: Path) -> Path:
    with tttnn.TextStoreWriter(path) as writer:
        for text in TEXTS:
            writer.append(text)
    return path


def in_child(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=240,
        check=False,
    )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_open_store_and_an_open_datastore_hold_no_descriptor(tmp_path: Path) -> None:
    config = tttnn.DatastoreConfig(segment_documents=2)
    tttnn.Datastore.build(tmp_path / "d", corpus(60), tiny_embedder(), config=config).close()
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Fewer are left than there are segments.
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 12, hard))
    try:
        opened = tttnn.Datastore.open(tmp_path / "d", tiny_embedder())
        assert opened.info()["segments"] == 30
        assert len(opened.search("moon", 60)) == 60
        assert open_descriptors() == before
        again = [tttnn.TextStore.open(tmp_path / "d" / "segments" / "000" / "texts.zst") for _ in range(40)]
        assert {store[0].text for store in again} == {opened.documents[0].text}
        with pytest.raises(OSError, match=r"texts.zst: .*Too many open files. Raise the limit of open files with"):
            _ = [tttnn.TextStore.open(store.path, io="pread") for store in again]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


CUT_STORE = """
import faulthandler, os, sys
faulthandler.enable()
import tttnn
store = tttnn.TextStore.open(sys.argv[1], io=sys.argv[2])
first = store[0]
faulthandler.enable()
os.truncate(sys.argv[1], int(sys.argv[3]))
for read in (lambda: store[2900], lambda: list(store), store.verify, lambda: store.read_many(range(3000))):
    try:
        read()
        print("read")
    except tttnn.StoreCorruptError as error:
        print(error)
"""


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("left", [0, 5000, 70_000])
def test_a_store_cut_short_while_it_is_open_is_an_error_that_names_it(tmp_path: Path, io: str, left: int) -> None:
    path = write(tmp_path / "texts.zst")
    assert path.stat().st_size > 80_000
    ended = in_child(CUT_STORE, path, io, left)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") and line.endswith("Restore the file or rebuild it.") for line in lines)


CUT_INDEX = """
import os, sys
import numpy as np
import tttnn
from tttnn.datastore.index import NeighborIndex
index = NeighborIndex.open(sys.argv[1])
vectors = np.random.default_rng(0).standard_normal((5000, 32)).astype(np.float32)
os.truncate(index.vectors_path, int(sys.argv[2]))
reads = [lambda: index.search(vectors[:200], 5, method=method) for method in ("graph", "scan")]
for read in (*reads, lambda: index.vectors(range(5000))):
    try:
        read()
        print("read")
    except tttnn.IndexCorruptError as error:
        print(error)
"""


@pytest.mark.parametrize("backend", ["hnsw", "exact"])
@pytest.mark.parametrize("left", [0, 300_000])
def test_an_index_cut_short_while_it_is_open_is_an_error_that_names_it(tmp_path: Path, backend: str, left: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((5000, 32)).astype(np.float32)
    index = NeighborIndex.build(tmp_path / "i", vectors, tttnn.IndexConfig(backend=backend))
    ended = in_child(CUT_INDEX, tmp_path / "i", left)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{index.vectors_path}: was cut short while it was open") for line in lines)


CUT_ROWS = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import tttnn
from tttnn.instant.rows import ExpertRows, begin_rows, put_row, row_of
path = Path(sys.argv[1], "experts.1.bin")
content = [row_of(np.full(40_000, value, np.float32)) for value in (1, 2, 3)]
begin_rows(path, "ab" * 32, 3, 40_000, {0: content[0]})
for number in (1, 2):
    put_row(path, number, content[number])
rows = ExpertRows(path.parent, SimpleNamespace(rows_file=path.name, numbers=40_000, rows=3, model="ab" * 32))
assert rows.row(2) == content[2]
os.truncate(path, int(sys.argv[2]))
for number in (1, 2):
    try:
        rows.read(number)
        print("read")
    except tttnn.IndexCorruptError as error:
        print(error)
"""


@pytest.mark.parametrize("left", [0, 30_000])
def test_experts_cut_short_while_they_are_open_are_an_error_that_names_them(tmp_path: Path, left: int) -> None:
    ended = in_child(CUT_ROWS, tmp_path, left)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{tmp_path / 'experts.1.bin'}: row ") and "checksum" in line for line in lines)


def test_experts_need_no_syncing(tmp_path: Path, shim: Path) -> None:
    whole = CUT_ROWS.split("os.truncate")[0] + "print(rows.read(1)[0])"
    ended = in_child(whole, tmp_path, 0, LD_PRELOAD=str(shim), REFUSED_ERRNO=str(errno.EINVAL), REFUSED_LINK="1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["2.0"]


def test_a_fault_that_is_not_ours_ends_the_process_as_ever(tmp_path: Path) -> None:
    script = """
import faulthandler, mmap, os, sys
import tttnn
store = tttnn.TextStore.open(sys.argv[1])
if sys.argv[2] == "late":
    faulthandler.enable()
with open(sys.argv[3], "w+b") as file:
    file.truncate(10000)
    held = mmap.mmap(file.fileno(), 10000)
    file.truncate(0)
    print(held[5000])
"""
    path = write(tmp_path / "texts.zst")
    for order in ("early", "late"):
        ended = in_child(script, path, order, tmp_path / "other")
        assert ended.returncode == -7, (ended.returncode, ended.stderr)
        assert ("Bus error" in ended.stderr) == (order == "late")


SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
static int refuse(void) { errno = atoi(getenv("REFUSED_ERRNO")); return -1; }
int flock(int fd, int how) { (void)fd; (void)how; return refuse(); }
int fsync(int fd) { (void)fd; return refuse(); }
int fdatasync(int fd) { (void)fd; return refuse(); }
int symlink(const char *to, const char *at) { (void)to; (void)at; errno = atoi(getenv("REFUSED_LINK")); return -1; }
"""

BUILD = """
import sys, logging
logging.basicConfig(level="WARNING")
import tttnn
from tests.encoders import tiny_embedder
from tests.test_datastore import corpus
with tttnn.TextStoreWriter(sys.argv[1] + "/texts.zst") as writer:
    writer.append("a text")
made = tttnn.Datastore.build(sys.argv[1] + "/d", corpus(30), tiny_embedder())
made.append(["one more"])
made.delete([3])
made.compact()
print(len(tttnn.TextStore.open(sys.argv[1] + "/texts.zst")), len(made.search("moon", 100)))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler makes the file system that lacks something")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c"], check=True)
    return folder / "shim.so"


@pytest.mark.parametrize(
    ("number", "link"),
    [
        (errno.EINVAL, errno.EPERM),
        (errno.ENOSYS, errno.ENOSYS),
        (errno.ENOLCK, errno.EPERM),
        (errno.EOPNOTSUPP, errno.EOPNOTSUPP),
    ],
)
def test_locks_syncing_and_links_are_optional(tmp_path: Path, shim: Path, number: int, link: int) -> None:
    ended = in_child(BUILD, tmp_path, LD_PRELOAD=str(shim), REFUSED_ERRNO=str(number), REFUSED_LINK=str(link))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["1", "30"]
    assert "texts.zst: its file system has no locks" in ended.stderr


def test_another_writer_is_one_and_a_refused_lock_is_told_as_it_is(tmp_path: Path, shim: Path) -> None:
    with (
        tttnn.TextStoreWriter(tmp_path / "texts.zst"),
        pytest.raises(OSError, match=r"texts.zst.partial: another writer holds it"),
    ):
        tttnn.TextStoreWriter(tmp_path / "texts.zst")
    ended = in_child(BUILD, tmp_path, LD_PRELOAD=str(shim), REFUSED_ERRNO=str(errno.EIO))
    assert "texts.zst.partial: cannot be locked: Input/output error" in ended.stderr


def test_a_limit_of_a_file_s_size_names_file_and_remedy(tmp_path: Path) -> None:
    script = """
import resource, sys
import tttnn
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with tttnn.TextStoreWriter(sys.argv[1]) as writer:
    for i in range(20000):
        writer.append(f"{hash(str(i))} {i}")
"""
    ended = in_child(script, tmp_path / "texts.zst")
    last = ended.stderr.splitlines()[-1]
    assert "texts.zst.partial: cannot be written: File too large. Raise the limit of a file's size with: ulimit" in last


def test_a_store_opened_by_a_relative_name_stays_that_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = tttnn.TextStoreWriter("texts.zst")
    writer.append("here")
    store_path = tmp_path / "texts.zst"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.finish()
    monkeypatch.chdir(tmp_path)
    store = tttnn.TextStore.open("texts.zst")
    monkeypatch.chdir(tmp_path / "elsewhere")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy[0].text, copy.path, store.path) == ("here", store_path, store_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(store.__class__.read_text.__get__(store), [0]) == ["here"]
