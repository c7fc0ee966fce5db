"""From the bytes of a manifest, which a stranger may have written, to a ``Manifest``."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from edge_mdeq.bundle.manifest import FORMAT, SCHEMA, VERSION, Manifest
from edge_mdeq.config import convert
from edge_mdeq.errors import BundleError, ConfigError
from edge_mdeq.version import __version__

__all__ = ["decode_manifest", "version_of"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """Parse and validate; ``where`` names the file in messages.

    Raises:
        BundleError: not JSON, not a manifest, a newer schema, or a field that makes no sense (its
            path is named).
    """
    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}); export the bundle anew") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BundleError(f"{where} is not the manifest of an edge-mdeq bundle")
    schema, requires = value.get("schema"), version_of(value.get("requires"))
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{where} has schema {schema}, this edge-mdeq {__version__} reads up to {SCHEMA}; "
            f"{advice(value)}"
        )
    if requires > version_of(__version__):
        raise BundleError(f"{where} is not for edge-mdeq {__version__}; {advice(value)}")
    try:
        refuse_control(value)
        manifest: Manifest = convert(value, Manifest)
    except ConfigError as error:
        raise BundleError(f"{where}: {error}") from error
    return manifest


def version_of(value: object) -> tuple[int, ...]:
    """A version's numbers, without zeros at the end; empty where it is none."""
    found = VERSION.match(value.removeprefix("edge-mdeq ")) if isinstance(value, str) else None
    numbers = [int(number) for number in found.group().split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def advice(value: dict[str, Any]) -> str:
    """Which edge-mdeq to install for a manifest that is too new; it is a stranger's text so far."""
    for said in (value.get("requires"), value.get("created_by")):
        name = str(said).removeprefix("edge-mdeq ")
        if VERSION.fullmatch(name) and version_of(name) > version_of(__version__):
            return f"install edge-mdeq {name} or later: pip install 'edge-mdeq>={name}'"
    return "it was written by a newer version: pip install --upgrade edge-mdeq"


def refuse_control(value: object, path: str = "$") -> None:
    """Raise ConfigError for text with control characters, which reaches terminals and logs."""
    if isinstance(value, str) and CONTROL.search(value):
        raise ConfigError(f"`{path}` holds control characters")
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_control(key, path)
            refuse_control(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_control(item, f"{path}[{index}]")
