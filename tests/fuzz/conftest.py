"""Whole examples of what is damaged here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # what several files here share lies beside them


@pytest.fixture(scope="session")
def examples(
    tmp_path_factory: pytest.TempPathFactory, segmenter_bundle: Path, segmenter_weights: Path
) -> Path:
    """A folder with a bundle and the weights that it was exported from."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(segmenter_bundle, folder / "base.mdeq")
    for suffix in (".safetensors", ".json"):
        shutil.copy(segmenter_weights.with_suffix(suffix), folder / f"base{suffix}")
    return folder
