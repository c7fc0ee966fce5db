"""What makes exports quick where a test looks at something else.

Each goes around exports, or on top of a test as its decorator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edge_mdeq.config import InputConfig
    from edge_mdeq.model import MDEQ
    from mdeq_export.compose import Pieces


@contextmanager
def two_images() -> Iterator[None]:
    """Exports measure and verify on two images, where eight would show no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdeq_export.exporter.VERIFICATION_IMAGES", 2)
        yield


@contextmanager
def traced_once() -> Iterator[None]:
    """Exports of the same model, input, solver and batch share pieces: tracing takes seconds."""
    from mdeq_export import exporter

    trace, known = exporter.trace_pieces, {}

    def recall(model: MDEQ, config: InputConfig, *settings: object) -> Pieces:
        weights = hashlib.sha256()
        for value in model.state_dict().values():
            weights.update(value.numpy().tobytes())
        key = (model.config, weights.digest(), config, settings)
        if key not in known:
            known[key] = trace(model, config, *settings)  # type: ignore[arg-type]
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "trace_pieces", recall)
        yield
