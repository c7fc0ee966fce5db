"""A whole bundle, and its manifest to be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import CONTENT, fill, manifest_of

from edge_mdeq.bundle import writing_bundle
from edge_mdeq.bundle.manifest import encode_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.mdeq"
    with writing_bundle(path) as folder:
        fill(folder)
    return path


@pytest.fixture
def raw() -> dict[str, Any]:
    """The manifest as decoded JSON, to be damaged."""
    value: dict[str, Any] = json.loads(encode_manifest(manifest_of(CONTENT)))
    return value
