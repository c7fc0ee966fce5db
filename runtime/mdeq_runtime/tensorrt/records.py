"""What stands beside an engine: a JSON that says what it was built from and for, and its hash.

A new engine's is there, as ``NAME.next.json``, before the engine takes its place: whenever a build
is killed, one of the two records is of the engine that is there.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge_mdeq.bundle.reader import hash_file
from edge_mdeq.bundle.signature import Signature
from edge_mdeq.errors import EngineError
from edge_mdeq.files import read_capped, sync_folder, write_atomic
from mdeq_runtime.tensorrt.identity import Identity

__all__ = ["NEXT", "EngineRecord", "confirm", "read_record", "record_file", "write_record"]

NEXT = ".next.json"  # the suffix of a record whose engine is about to take its place
RECORD_LIMIT = 2**16  # bytes; far above any real one


@dataclass(frozen=True)
class EngineRecord:
    """What stands beside an engine.

    Attributes:
        graph: the bundle's graph that it was built from.
        sources: SHA-256 of that graph and of the weights that it uses.
        sha256, bytes: of the engine.
        identity: what it was built for.
        settings: that the compiler was given.
        measured: what the build took: seconds, peak_bytes, layers.
        tag: of the device that built it.
        signatures: by who built it for other devices.
    """

    graph: str
    sources: str
    sha256: str
    bytes: int
    identity: Identity
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    tag: str = ""
    signatures: tuple[Signature, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        """What tag and signatures are for: all but themselves, with the engine's hash."""
        return {k: v for k, v in asdict(self).items() if k not in ("tag", "signatures")}


def write_record(path: Path, record: EngineRecord) -> None:
    """Replace a record as a whole."""
    write_atomic(path, json.dumps(asdict(record), indent=2).encode() + b"\n")


def confirm(path: Path) -> None:
    """An engine has taken its place: so does its record."""
    os.replace(path.with_suffix(NEXT), path.with_suffix(".json"))
    sync_folder(path.parent)


def record_file(path: Path) -> Path:
    """The JSON of an engine: that of a new one, if it was killed before that took its place."""
    coming = path.with_suffix(NEXT)
    with suppress(OSError, EngineError):
        if coming.exists() and read_record(coming).sha256 == hash_file(path):
            return coming
    return path.with_suffix(".json")


def read_record(path: Path) -> EngineRecord:
    """What stands beside an engine.

    Raises:
        EngineError: nothing does, or it makes no sense.
    """
    try:
        return msgspec.json.decode(read_capped(path, RECORD_LIMIT), type=EngineRecord)
    except OSError as error:
        raise EngineError(f"{path.name} cannot be read ({error.strerror})") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{path.name} is no record of an engine ({error})") from error
