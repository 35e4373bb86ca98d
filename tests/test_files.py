"""Files: optional syncs and locks, names that are not ours, full disks; and the place of demo models."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tttnn import files, models
from tttnn.datastore.lock import locked
from tttnn.errors import DatastoreLockedError, UnknownModelError
from tttnn.instant.rows import begin_rows
from tttnn.store.document import Document
from tttnn.store.export import export_jsonl
from tttnn.store.repair import repair_store
from tttnn.store.writer import write_store


def _raise(number: int) -> Any:
    def raising(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return raising


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_no_failure(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with caplog.at_level("INFO", "tttnn"):
        files.write_file(tmp_path / "a.bin", b"content")
    assert (tmp_path / "a.bin").read_bytes() == b"content"
    assert "does not sync folders" in caplog.text
    monkeypatch.setattr(os, "fsync", _raise(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_file(tmp_path / "a.bin", b"other")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_and_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", _raise(number))
    with locked(tmp_path):
        assert "has no locks" in caplog.text
    monkeypatch.setattr(fcntl, "flock", _raise(errno.EACCES))
    with pytest.raises(PermissionError), locked(tmp_path):
        pass


def test_another_writer_is_told_from_a_lock_that_fails(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DatastoreLockedError, match="another builder is at work"), locked(tmp_path):
        pass


def test_only_nothing_or_a_regular_file_is_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("letter")
    (tmp_path / "link").symlink_to(theirs)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    kinds = {"link": "a symbolic link", "dangling": "a symbolic link", "folder": "a folder", "pipe": "a pipe"}
    for name, kind in {**kinds, "socket": "a socket"}.items():
        with pytest.raises(FileExistsError, match=f"{name}: must be a regular file or a new name, got {kind}"):
            files.write_file(tmp_path / name, b"ours")
        os.rename(tmp_path / name, tmp_path / f"{name}.partial")
        files.write_file(tmp_path / name, b"ours")
        assert (tmp_path / name).read_bytes() == b"ours"
        assert os.path.lexists(tmp_path / f"{name}.partial")
    assert theirs.read_text() == "letter"
    for _ in range(2):
        files.write_file(tmp_path / "new", b"ours")
    assert (tmp_path / "new").read_bytes() == b"ours"


def test_what_has_the_name_of_an_unfinished_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letter, other = tmp_path / "a.partial", tmp_path / "a.1.partial"
    letter.write_text("letter")
    other.write_text("other")
    files.write_file(tmp_path / "a", b"ours")
    export_jsonl([Document("text")], tmp_path / "a", force=True)
    assert (tmp_path / "a").read_bytes() == b'{"text": "text", "meta": {}}\n'
    begin_rows(tmp_path / "a", "00" * 32, 1, 64, {})
    monkeypatch.setattr(os, "fsync", _raise(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_file(tmp_path / "a", b"other")
    assert {file.name for file in tmp_path.iterdir()} == {"a", "a.partial", "a.1.partial"}
    assert (letter.read_text(), other.read_text()) == ("letter", "other")


def test_a_store_is_written_over_an_unfinished_store_alone(tmp_path: Path) -> None:
    target, letter = tmp_path / "a.zst", tmp_path / "a.zst.partial"
    letter.write_text("a letter to a friend")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"a\.zst\.partial: must be a store that was begun"):
            write_store(target, [Document("text")], resume=resume)
    letter.rename(tmp_path / "letter")
    write_store(target, [Document("text")])
    (tmp_path / "b.zst.partial").write_text("letter")
    with pytest.raises(FileExistsError, match=r"b\.zst\.partial: must be a store that was begun"):
        repair_store(target, tmp_path / "b.zst")
    assert (tmp_path / "b.zst.partial").read_text() == "letter"
    for begun in (b"", b"\0" * 300, target.read_bytes()[:7], target.read_bytes()[:200]):
        letter.write_bytes(begun)
        write_store(target, [Document("text")], resume=True)
        assert not letter.exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "Free some space"), (errno.EMFILE, "Raise the limit of open files")]
)
def test_an_error_without_a_name_gets_a_path_and_a_remedy(number: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"build: .*{words}") as caught, files.explained(tmp_path / "build"):
        _raise(number)()
    assert caught.value.errno == number
    with (
        pytest.raises(OSError, match="inner") as again,
        files.explained(tmp_path / "outer"),
        files.explained(tmp_path / "inner"),
    ):
        _raise(number)()
    assert "outer" not in str(again.value)
    with pytest.raises(OSError, match=r"Input/output error$"), files.explained(tmp_path):
        _raise(errno.EIO)()


def test_the_cache_of_demo_models_is_named_by_the_environment_or_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTTNN_CACHE", str(tmp_path))
    assert models.default_cache_dir() == tmp_path
    monkeypatch.delenv("TTTNN_CACHE")
    assert models.default_cache_dir() == Path.home() / ".cache" / "tttnn"

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UnknownModelError, match=r"no home folder\. Set TTTNN_CACHE"):
        models.resolve("minilm-l6")
