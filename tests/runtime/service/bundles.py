"""Bundles to put in the place of another: a good one, and a spoilt one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def point(link: Path, bundle: Path) -> None:
    """Let the link lead to another bundle, at once."""
    link.with_name("next").symlink_to(bundle)
    link.with_name("next").replace(link)


def another(bundle: Path, path: Path) -> Path:
    """A copy of a bundle under another name: another bundle that is as good."""
    shutil.copytree(bundle, path)
    manifest = path / "manifest.json"
    found = json.loads(manifest.read_text())
    found["name"] = path.stem
    manifest.write_text(json.dumps(found))
    return path


def spoil(bundle: Path) -> Path:
    """One bit of the weights is wrong."""
    (weights,) = bundle.glob("graphs/ort-cpu/*.bin")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    return bundle
