"""Atomic replacement: the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mdeq.files import read_capped, replacing, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


def test_the_data_is_there_afterwards_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new.bin", b"data")
    assert (tmp_path / "new.bin").read_bytes() == b"data"
    assert names(tmp_path) == ["new.bin"]


def test_an_existing_file_is_replaced(target: Path) -> None:
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["file.bin"]


def test_the_old_file_is_readable_until_the_block_ends(target: Path) -> None:
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"


def test_the_temporary_is_on_the_same_file_system(target: Path) -> None:
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == target.parent


def fail_while_writing(target: Path, error: type[BaseException]) -> None:
    with replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file_and_no_temporary(
    target: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fail_while_writing(target, error)
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(
    target: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["file.bin"]


def test_the_data_reaches_the_disk_before_it_gets_its_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomic(target, b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its new name, the folder


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "file.bin", b"data")


def test_a_capped_read_takes_a_plain_file_of_at_most_so_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_capped(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_capped(path, 4)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_capped_read_waits_for_no_pipe(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match="not a plain file"):
        read_capped(tmp_path / "x", 5)
