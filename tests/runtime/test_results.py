"""What a program asks of an answer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edge_mdeq
from edge_mdeq.errors import ConfigError, FrameError

SIZE = (240, 320)


@pytest.fixture(scope="module")
def frame() -> NDArray[np.uint8]:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, SIZE[::-1]))


def test_a_mask_and_its_largest_classes(segmenter_bundle: Path, frame: NDArray[np.uint8]) -> None:
    with edge_mdeq.load(segmenter_bundle) as model:
        result = model(frame)
    mask = result.to_mask()
    assert mask.shape == SIZE
    shares = {name: float((mask == k).mean()) for k, name in enumerate(result.labels)}
    expected = sorted((item for item in shares.items() if item[1]), key=lambda item: -item[1])
    assert [share for _, share in result.top_k(2)] == pytest.approx([x for _, x in expected[:2]])
    assert [name for name, _ in result.top_k(99)] == [name for name, _ in expected]


def test_an_overlay_shows_the_mask_and_leaves_the_frame(
    segmenter_bundle: Path, frame: NDArray[np.uint8]
) -> None:
    with edge_mdeq.load(segmenter_bundle) as model:
        result = model(frame)
        colours = np.array(model.manifest.palette, np.float64)[..., ::-1]
    before = frame.copy()
    drawn = result.overlay(frame, opacity=1.0)
    assert np.array_equal(frame, before)
    assert drawn.shape == frame.shape
    same = (np.abs(drawn - colours[result.to_mask()]) <= 1).all(axis=2)
    assert same.mean() > 0.5, "all but the legend and the gauge"


def test_scores_by_their_names(classifier_bundle: Path, frame: NDArray[np.uint8]) -> None:
    with edge_mdeq.load(classifier_bundle) as model:
        result = model(frame)
    best = int(result.output.argmax())
    ((name, score),) = result.top_k(1)
    assert (name, score) == (result.labels[best], float(result.output[best]))
    assert sum(score for _, score in result.top_k(5)) == pytest.approx(1)
    assert result.overlay(frame).shape == frame.shape
    with pytest.raises(ConfigError, match="no mask"):
        result.to_mask()
    with pytest.raises(ConfigError, match="at least 1"):
        result.top_k(0)


def test_only_the_answered_frame_can_be_drawn_on(
    segmenter_bundle: Path, frame: NDArray[np.uint8]
) -> None:
    with edge_mdeq.load(segmenter_bundle) as model:
        result = model(frame)
    with pytest.raises(FrameError, match="pass the frame that was answered"):
        result.overlay(frame[:-1])
    with pytest.raises(FrameError, match="the frame to draw on"):
        result.overlay(frame[..., 0])
