"""The key of this device: what it built itself is told by it from what a stranger put there.

An engine executes, and a fingerprint of the device that it claims to be of can be forged by
whoever knows the device. So what is built here is recorded with a tag (HMAC-SHA256) that only who
reads the key can make: 32 random bytes, made at first use, for their owner alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_mdeq.errors import DeviceError
from edge_mdeq.files import (
    make_folder,
    read_capped,
    remove_remains,
    sync_folder,
    user_folder,
)

__all__ = ["canonical", "device_key", "key_path", "made_here", "tag"]

SIZE = 32  # bytes


def key_path() -> Path:
    """``$XDG_STATE_HOME/edge-mdeq/device.key``, or that below ``~/.local/state``.

    Raises:
        DeviceError: this user has no home.
    """
    folder = user_folder("XDG_STATE_HOME", ".local/state")
    if folder is None:
        raise DeviceError(
            "this user has no home directory for the key of this device, without which what was "
            "built here cannot be told from what was not; give XDG_STATE_HOME a folder of this user"
        )
    return folder / "edge-mdeq" / "device.key"


def device_key(path: Path | None = None) -> bytes:
    """The key, which is made if there is none.

    Args:
        path: where it lies; None: ``key_path()``.

    Raises:
        DeviceError: it cannot be read or made, belongs to another user, or others could read or
            replace it.
    """
    path = path or key_path()
    try:
        with suppress(FileExistsError):
            make(path)
        key = read(path)
    except OSError as error:
        raise DeviceError(
            f"the key of this device, {path}, cannot be used ({error.strerror}): what was built "
            "here cannot be told from what was not. Give XDG_STATE_HOME a folder of this user"
        ) from error
    return key


def make(path: Path) -> None:
    """Put a new key at ``path``, whole or not at all; FileExistsError if there is one."""
    remove_remains(path)
    if os.path.lexists(path):
        raise FileExistsError(path)
    make_folder(path.parent, 0o700)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}-{os.getpid()}.tmp")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(secrets.token_bytes(SIZE))
            file.flush()
            os.fsync(handle)
        os.link(new, path)  # fails where another process was quicker, whose key then counts
        sync_folder(path.parent)
    finally:
        new.unlink()


def read(path: Path) -> bytes:
    """The key at ``path``, if nobody else can have read or put it."""
    found = path.lstat()
    if found.st_uid != os.geteuid():
        raise misfit(path, f"belongs to user {found.st_uid}", "name a folder of your own")
    if not stat.S_ISREG(found.st_mode):
        raise misfit(path, "is no plain file", f"rm {path}, and a new one is made")
    if found.st_mode & 0o077:
        raise misfit(path, "can be read or written by others", f"chmod 600 {path}")
    if path.parent.stat().st_mode & 0o022:
        raise misfit(path, "lies in a folder that others can write to", f"chmod go-w {path.parent}")
    key = read_capped(path, SIZE) if found.st_size <= SIZE else b""
    if len(key) != SIZE:
        raise misfit(path, f"does not have {SIZE} bytes", f"rm {path}, and a new one is made")
    return key


def misfit(path: Path, what: str, then: str) -> DeviceError:
    return DeviceError(
        f"the key of this device, {path}, {what}: {then} (XDG_STATE_HOME says where)"
    )


def canonical(record: Mapping[str, Any]) -> bytes:
    """The same bytes for the same JSON."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def tag(purpose: str, record: Mapping[str, Any]) -> str:
    """What this device puts beside a record of what it has built, in hex.

    Raises:
        DeviceError: it has no key that can be used.
    """
    text = b"edge-mdeq 1: " + purpose.encode() + b"\0" + canonical(record)
    return hmac.new(device_key(), text, hashlib.sha256).hexdigest()


def made_here(purpose: str, record: Mapping[str, Any], given: object) -> bool:
    """Whether ``given`` is this device's tag for ``record``.

    Raises:
        DeviceError: it has no key that can be used.
    """
    if not isinstance(given, str):
        return False
    return hmac.compare_digest(tag(purpose, record).encode(), given.encode(errors="replace"))
