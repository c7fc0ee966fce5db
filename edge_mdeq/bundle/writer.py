"""Writing a bundle as a whole: whoever looks sees the old one or the new one."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_mdeq.bundle.manifest import BUNDLE_SUFFIX, FileEntry
from edge_mdeq.bundle.reader import ASIDE, MANIFEST, hash_file
from edge_mdeq.errors import BundleError
from edge_mdeq.files import hold, make_folder, sync_folder

__all__ = ["describe_files", "writing_bundle"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2
NEW = "new"  # in a writer's temporary folder: what it writes


@contextmanager
def writing_bundle(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it is fsynced and becomes ``path``.

    If the block raises, what it wrote is removed and whatever was at ``path`` stays. A bundle that
    is replaced is exchanged for the new one in a single step where the file system can. What a
    killed writer left beside ``path`` is removed first.

    Args:
        path: the bundle, ``NAME.mdeq``.
        force: replace an existing bundle; without it an existing one is refused at once.

    Raises:
        BundleError: a wrong suffix, something already there, or a place that cannot be written.
    """
    if path.suffix != BUNDLE_SUFFIX:
        raise BundleError(f"{path} must end in {BUNDLE_SUFFIX}")
    remove_remains(path)
    if os.path.exists(path):
        if not force:
            raise BundleError(f"{path} already exists; replace it with --force")
        if not os.path.isfile(path / MANIFEST):
            raise BundleError(
                f"{path} exists and is not a bundle; remove it or choose another name"
            )
    work = WorkFolder(path)
    try:
        try:
            make_folder(path.parent)
            work.make()
        except OSError as error:
            raise BundleError(f"cannot write to {path.parent}: {error.strerror}") from error
        try:
            yield work.place / NEW
            sync_tree(work.place / NEW)
            put_in_place(work.place / NEW, path, work.place / ASIDE)
            sync_folder(path.parent)
        except OSError as error:
            raise BundleError(
                f"cannot write {path}: {error.strerror or error}; free some space, or choose "
                "another place"
            ) from error
    finally:
        work.remove()


class WorkFolder:
    """A folder beside ``path`` for its writer; it has a name before it is there, so that whatever
    interrupts its making can remove it.

    Args:
        path: the bundle.

    Attributes:
        place: of the folder.
        lock: the handle that holds it, once it is held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: int | None = None
        self.place = self.another_name()

    def another_name(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")

    def make(self) -> None:
        """Make it, and hold it.

        Raises:
            OSError: it cannot be made.
        """
        while True:
            self.place.mkdir()
            try:
                self.lock = hold(self.place)
                (self.place / NEW).mkdir()
                return
            except (FileNotFoundError, BlockingIOError):
                # another writer took it for a remain, in the moment before it was held
                self.remove()
                self.place = self.another_name()

    def remove(self) -> None:
        """Remove it; what was moved aside into it returns if nothing took its place."""
        clear(self.place, self.path)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def remove_remains(path: Path) -> None:
    """Remove what killed writers of ``path`` left: whole folders that nobody holds any more."""
    for place in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            lock = hold(place)
        except OSError:  # another writer's, which may be gone by now
            continue
        if lock is not None:
            clear(place, path)
            os.close(lock)


def clear(place: Path, path: Path) -> None:
    """Remove a writer's folder; what it had moved aside returns if nothing took its place."""
    aside = place / ASIDE
    # not Path.exists, which raises where a name is too long or a folder is not one's own
    if os.path.exists(aside) and not os.path.exists(path):
        os.rename(aside, path)
    shutil.rmtree(place, ignore_errors=True)


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Hash and size of every file below ``root`` but the manifest, by relative name, sorted."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p != root / MANIFEST)
    return {
        p.relative_to(root).as_posix(): FileEntry(hash_file(p), p.stat().st_size) for p in files
    }


def put_in_place(new: Path, path: Path, aside: Path) -> None:
    """Rename ``new`` to ``path``; an existing folder there ends up under one of the other names."""
    if not path.exists():
        os.rename(new, path)
    elif not exchange(new, path):
        os.rename(path, aside)  # a moment without either; both stay on disk
        os.rename(new, path)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically (Linux renameat2); False where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    status = renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
    return bool(status == 0)


def sync_tree(root: Path) -> None:
    """Flush every file and folder below ``root``."""
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))
