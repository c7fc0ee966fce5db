from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mdeq_runtime.answers import class_shares, label_of, top_scores
from mdeq_runtime.overlay import BLUE, ORANGE, draw
from mdeq_runtime.palette import SAFE
from mdeq_runtime.results import Result

LABELS = ("sky", "road", "car")
PALETTE = ((10, 20, 200), (200, 20, 10), (20, 200, 20))  # RGB


def result(output: Any, **changes: Any) -> Result:
    values: dict[str, Any] = {
        "confidence": None,
        "iterations": 4,
        "residual": 0.02,
        "converged": True,
        "warm": True,
        "reason": "",
        "times": {"read": 9.0, "solve": 5.0},
    }
    return Result(output, **{**values, **changes})


def test_a_mask_is_blended_in_its_rgb_palette_and_the_frame_stays_as_it_is() -> None:
    image = np.full((240, 320, 3), 100, np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 1
    drawn = draw(image, result(mask), LABELS, PALETTE, opacity=0.5)
    assert (image == 100).all()
    assert drawn[100, 300].tolist() == [55, 60, 150]  # BGR, half of each
    assert drawn[60, 140].tolist() == [150, 60, 55]


def test_pixels_that_the_model_did_not_see_stay_as_they_are() -> None:
    image = np.full((240, 320, 3), 100, np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 255
    drawn = draw(image, result(mask), LABELS, PALETTE)
    assert (drawn[60:, 200:] == 100).all()


@pytest.mark.parametrize("size", [(180, 320), (480, 640), (1080, 1920), (640, 320), (16, 16)])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_it_draws_at_every_size(size: tuple[int, int], task: str) -> None:
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 100, np.uint8)
    if task == "segmentation":
        output: Any = rng.integers(0, 150, size, dtype=np.uint8)  # far more than the legend holds
    else:
        output = np.array([0.1, 0.7, 0.2], np.float32)
    drawn = draw(image, result(output), LABELS, PALETTE)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()


def gauge(residual: float, converged: bool) -> Any:
    image = np.zeros((240, 320, 3), np.uint8)
    scores = np.array([1.0], np.float32)
    drawn = draw(image, result(scores, residual=residual, converged=converged), ("a",))
    colour = BLUE if converged else ORANGE
    return (drawn[:60] == colour).all(axis=2)


def test_the_gauge_fills_as_the_residual_falls_and_its_colour_says_converged() -> None:
    lengths = [int(gauge(value, True).sum()) for value in (1.0, 0.1, 0.01, 0.001, 0.0)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0 < lengths[1] < lengths[2] < lengths[3]
    assert gauge(0.1, False).any()
    assert not gauge(float("nan"), False).any()


def test_classes_without_a_colour_get_one_that_all_eyes_tell_apart() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 1
    drawn = draw(image, result(mask), LABELS, PALETTE[:1], opacity=1.0)
    assert drawn[100, 300].tolist() == list(SAFE[1][::-1])
    assert drawn[60, 140].tolist() == list(PALETTE[0][::-1])


def test_mask_and_numbers_can_be_left_out() -> None:
    image = np.full((240, 320, 3), 100, np.uint8)
    mask = np.ones((240, 320), np.uint8)
    both = draw(image, result(mask), LABELS, PALETTE)
    numbers = draw(image, result(mask), LABELS, PALETTE, mask=False)
    masked = draw(image, result(mask), LABELS, PALETTE, numbers=False)
    assert (numbers[100, 200:] == 100).all()
    assert (numbers[:12] != 100).any()
    assert (masked[100] == both[100, -1]).all()
    assert (masked == masked[0, 0]).all(), "nothing is written"
    np.testing.assert_array_equal(
        draw(image, result(mask), LABELS, PALETTE, mask=False, numbers=False), image
    )


def luminance(grey: Any) -> Any:
    """Relative, 0...1, of sRGB grey levels."""
    value = np.asarray(grey) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("width", [320, 640, 1280, 1920])
@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_it_can_be_read_at_every_size_and_on_every_picture(width: int, brightness: int) -> None:
    """Letters of 7 pixels or more that stand out by 4.5 to 1, as the web's guidelines ask.

    The gauge is all there, so is its text, and a legend of three rows covers little.
    """
    size = (width * 3 // 4, width)
    image = np.full((*size, 3), brightness, np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[:, width // 2 :] = 1
    drawn = draw(image, result(mask), LABELS, PALETTE, opacity=0.0)
    shaded = drawn[0, -1, 0]  # the strip's right end, where nothing is written
    strip = drawn[: width // 12, :, 0].astype(int)
    written = np.argwhere(strip[: np.argmax(strip[:, -1] != shaded) or None] > 200)
    top = written[:, 0].min()
    bottom, right = written.max(axis=0)
    assert bottom - top + 1 >= 7
    assert right < width - 5, "the last word is whole"
    contrast = (luminance(255) + 0.05) / (luminance(shaded) + 0.05)
    assert contrast >= 4.5
    changed = (drawn != image).any(axis=2).mean()
    assert changed < 0.25 if brightness else True


def test_a_narrow_picture_leaves_out_words_and_not_halves_of_them() -> None:
    for width in (64, 96, 128, 160, 200):
        image = np.zeros((120, width, 3), np.uint8)
        scores = np.array([1.0], np.float32)
        drawn = draw(image, result(scores, residual=1.0), ("a",))
        assert not drawn[:15, -3:].any(), "a word is cut off"


def test_shares_and_scores_are_sorted() -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[:6] = 2
    mask[9] = 255
    assert class_shares(mask) == [(2, 0.6), (0, pytest.approx(0.3)), (255, pytest.approx(0.1))]
    assert class_shares(mask[:, ::2])[0] == (2, 0.6)
    scores = np.array([0.1, 0.6, 0.3], np.float32)
    assert [index for index, _ in top_scores(scores, 2)] == [1, 2]


def test_a_class_without_a_label_has_its_number() -> None:
    assert [label_of(i, LABELS) for i in (1, 7, 255)] == ["road", "class 7", "unseen"]
