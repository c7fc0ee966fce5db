"""Exports that measure and verify on two images, where eight would show no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def two_images() -> Iterator[None]:
    """Around exports, or as a test's decorator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdeq_export.exporter.VERIFICATION_IMAGES", 2)
        yield
