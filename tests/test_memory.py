"""How much memory may be taken, on made-up machines and in made-up control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from tttnn.errors import AdaptError
from tttnn.weights import memory

MACHINE = 8000 * 1024
NO_LIMIT = "9223372036854771712"


def machine(root: Path, *, groups: str, mounts: list[str], files: dict[str, object]) -> Path:
    """Write what a system says of itself."""
    written = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable: 8000 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "".join(f"{line}\n" for line in ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]),
        **files,
    }
    for name, content in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(content))
    return root


V2 = ["30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"]
V1 = [
    "30 22 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
    "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
]


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"a/b/memory.max": "max", "a/memory.max": "max"}, MACHINE),
        ({"a/b/memory.max": 5000, "a/b/memory.current": 1200}, 3800),
        ({"a/b/memory.max": 5000, "a/b/memory.current": 1200, "a/b/memory.stat": "anon 9\ninactive_file 200\n"}, 4000),
        ({"a/b/memory.max": "max", "a/memory.max": 4000, "a/memory.current": 3999}, 1),
        ({"a/b/memory.max": 9000, "a/b/memory.current": 1, "a/memory.max": 700, "a/memory.current": 900}, 0),
        ({"a/b/memory.max": "max", "memory.max": 600}, 600),
        ({}, MACHINE),
    ],
)
def test_the_least_of_all_groups_around_it(tmp_path: Path, files: dict[str, object], free: int) -> None:
    root = machine(
        tmp_path, groups="0::/a/b\n", mounts=V2, files={f"sys/fs/cgroup/{name}": value for name, value in files.items()}
    )
    assert memory.free_bytes(root) == free


@pytest.mark.parametrize(("limit", "free"), [(NO_LIMIT, MACHINE), (7000, 6500)])
def test_groups_of_version_1(tmp_path: Path, limit: object, free: int) -> None:
    folder = "sys/fs/cgroup/memory/docker/x"
    files = {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": 900,
        f"{folder}/memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
        # Of another hierarchy, whose group has the same name.
        "sys/fs/cgroup/cpu/docker/x/memory.limit_in_bytes": 1,
    }
    root = machine(tmp_path, groups="5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n", mounts=V1, files=files)
    assert memory.free_bytes(root) == free


def test_a_container_sees_its_own_part_of_the_tree(tmp_path: Path) -> None:
    mounts = ["30 22 0:27 /docker/x\\040y /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"]
    folder = "sys/fs/cgroup/memory"
    files = {f"{folder}/memory.limit_in_bytes": 5000, f"{folder}/inner/memory.limit_in_bytes": 3000}
    outer = machine(tmp_path / "outer", groups="4:memory:/docker/x y\n", mounts=mounts, files=files)
    assert memory.free_bytes(outer) == 5000
    inner = machine(tmp_path / "inner", groups="4:memory:/docker/x y/inner\n", mounts=mounts, files=files)
    assert memory.free_bytes(inner) == 3000
    elsewhere = machine(tmp_path / "elsewhere", groups="4:memory:/../other\n", mounts=mounts, files=files)
    assert memory.free_bytes(elsewhere) == 5000


def test_a_system_that_says_nothing_refuses_nothing(tmp_path: Path) -> None:
    assert memory.free_bytes(tmp_path) is None
    assert memory.free_bytes() is None or memory.free_bytes() > 0


def test_training_is_refused_by_the_group_though_the_machine_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine(tmp_path, groups="0::/\n", mounts=V2, files={"sys/fs/cgroup/memory.max": 100_000})
    known = memory.free_bytes(root)
    monkeypatch.setattr(memory, "free_bytes", lambda: known)
    memory.require_memory(6000, 6000, best=False, reused=0, rounded=False)
    with pytest.raises(AdaptError, match="must fit in memory: 7,000 weights need"):
        memory.require_memory(7000, 7000, best=False, reused=0, rounded=False)
