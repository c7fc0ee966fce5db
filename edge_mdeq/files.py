"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "hold",
    "make_folder",
    "read_capped",
    "remove_remains",
    "replacing",
    "sync_folder",
    "user_folder",
    "write_atomic",
]


@contextmanager
def replacing(path: Path, sweep: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is fsynced and takes its place.

    If the block raises, the sibling is removed and ``path`` stays as it was. What killed writers of
    ``path`` left is removed first, unless ``sweep`` says that somebody counts it.
    """
    if sweep:
        remove_remains(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~current_umask())  # some writers make files for their owner alone
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` as a whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_capped(path: Path, limit: int) -> bytes:
    """The content of a plain file, which a stranger may have written, of at most ``limit`` bytes.

    A pipe would be waited for, and a device such as /dev/zero has no end: neither is opened.

    Raises:
        OSError: it cannot be read; ``EFBIG`` if it is larger, ``EINVAL`` if it is no plain file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    with open(handle, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return data


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its parents where they are missing, so that a power cut leaves them.

    Args:
        path: the folder.
        mode: of the last one, if it is made.

    Raises:
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode, parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def hold(folder: Path) -> int | None:
    """Mark a folder as in use for as long as this process lives, or until the handle is closed.

    Returns:
        The handle; None where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def remove_remains(path: Path) -> None:
    """Remove ``.NAME.PID.tmp`` and ``.NAME.WORD-PID.tmp`` whose process is no more."""
    shape = re.compile(rf"\.{re.escape(path.name)}\.(?:\w+-)?(\d+)\.tmp")
    with suppress(OSError):
        if not Path("/proc/self").exists():
            return
        for name in os.listdir(path.parent):
            found = shape.fullmatch(name)
            if found and not Path(f"/proc/{found[1]}").exists():
                path.with_name(name).unlink(missing_ok=True)


def user_folder(variable: str, default: str) -> Path | None:
    """A folder of this user's, where the XDG base directories say.

    Args:
        variable: of the environment, such as XDG_CACHE_HOME.
        default: below the home directory.

    Returns:
        None where the user has no home, as in a container that gives a number for a user.
    """
    for said in (os.environ.get(variable, ""), os.path.expanduser(f"~/{default}")):
        if os.path.isabs(said):
            return Path(said)
    return None


def current_umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
