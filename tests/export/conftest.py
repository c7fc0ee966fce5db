"""What the exporter's tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helpers of these tests


@pytest.fixture(scope="session", autouse=True)
def _traced_once() -> Iterator[None]:
    """The same weights are exported again and again, with other settings and solvers."""
    from quick_exports import traced_once

    with traced_once():
        yield
