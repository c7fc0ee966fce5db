"""Pieces of the tiny models, lowered as for ONNX Runtime, and what was seen of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mdeq_export.compose import Pieces
from mdeq_export.quantize.calibrate import Ranges, observe


def lowered(weights: Path, target: str = "ort-cpu") -> Pieces:
    from edge_mdeq.solvers import make_solver
    from mdeq_export.exporter import load_frozen
    from mdeq_export.graphs import lower
    from mdeq_export.pieces import trace_pieces
    from mdeq_export.profiles import lookup_profile

    model, card = load_frozen(weights)
    pieces = trace_pieces(model, card.input, make_solver("fixed_point"))
    return lower(pieces, lookup_profile(target))


def look(pieces: Pieces, scores: bool) -> Ranges:
    from mdeq_export.images import verification_images

    _, height, width, _ = pieces.inject.inputs[0].shape.numpy()  # type: ignore[union-attr]
    images, _ = verification_images(None, 3, height, width)
    return observe(pieces, images, scores, lambda message: None)


@pytest.fixture(scope="session")
def pieces(segmenter_weights: Path) -> Pieces:
    """The segmenter's."""
    return lowered(segmenter_weights)


@pytest.fixture(scope="session")
def lowered_for(segmenter_weights: Path) -> Callable[[str], Pieces]:
    """The segmenter's, for another target."""
    return partial(lowered, segmenter_weights)


@pytest.fixture(scope="session")
def ranges(pieces: Pieces) -> Ranges:
    """Of its cell."""
    return look(pieces, scores=False)


@pytest.fixture(scope="session")
def classifier(classifier_weights: Path) -> tuple[Pieces, Ranges]:
    """The classifier's, with its readout."""
    found = lowered(classifier_weights)
    return found, look(found, scores=True)
