"""Writing a bundle as a whole: whoever looks sees the old one or the new one."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_mdeq.bundle.manifest import BUNDLE_SUFFIX, FileEntry
from edge_mdeq.bundle.reader import MANIFEST, hash_file
from edge_mdeq.errors import BundleError
from edge_mdeq.files import sync_folder

__all__ = ["describe_files", "writing_bundle"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def writing_bundle(path: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder to fill; on success it is fsynced and becomes ``path``.

    If the block raises, the sibling is removed and whatever was at ``path`` stays. A bundle that
    is replaced is exchanged for the new one in a single step where the file system can.

    Args:
        path: the bundle, ``NAME.mdeq``.
        force: replace an existing bundle; without it an existing one is refused at once.

    Raises:
        BundleError: a wrong suffix, something already there, or a place that cannot be written.
    """
    if path.suffix != BUNDLE_SUFFIX:
        raise BundleError(f"{path} must end in {BUNDLE_SUFFIX}")
    if path.exists():
        if not force:
            raise BundleError(f"{path} already exists; replace it with --force")
        if not (path / MANIFEST).is_file():
            raise BundleError(
                f"{path} exists and is not a bundle; remove it or choose another name"
            )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise BundleError(f"cannot write to {path.parent}: {error.strerror}") from error
        try:
            yield temporary
            sync_tree(temporary)
            put_in_place(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            raise BundleError(
                f"cannot write {path}: {error.strerror or error}; free some space, or choose "
                "another place"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Hash and size of every file below ``root`` but the manifest, by relative name, sorted."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p != root / MANIFEST)
    return {
        p.relative_to(root).as_posix(): FileEntry(hash_file(p), p.stat().st_size) for p in files
    }


def put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; an existing folder there ends up under the name of ``new``."""
    if not path.exists():
        os.rename(new, path)
        return
    if exchange(new, path):
        return
    aside = new.with_name(f"{new.name}.old")  # a moment without either; the old one stays on disk
    os.rename(path, aside)
    os.rename(new, path)
    shutil.rmtree(aside, ignore_errors=True)


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
