"""What the service's tests share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests


@pytest.fixture
def link(segmenter_bundle: Path, tmp_path: Path) -> Path:
    """``current``, a link to a copy of the segmenter's bundle, as in an installation."""
    shutil.copytree(segmenter_bundle, tmp_path / "one.mdeq")
    (tmp_path / "current").symlink_to("one.mdeq")
    return tmp_path / "current"
