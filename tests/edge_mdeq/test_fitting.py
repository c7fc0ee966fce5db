"""Fitting frames to a model's input, and masks back to the frame."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_mdeq.errors import ConfigError
from edge_mdeq.fitting import FIT_MODES, PAD_VALUE, FitMode, fit_image, plan_fit, resize
from mdeq_runtime.planner import mask_bytes

WIDE, TALL, MODEL = (48, 96), (96, 48), (64, 64)


def frame(size: tuple[int, int], value: int = 200) -> NDArray[np.uint8]:
    return np.full((*size, 3), value, dtype=np.uint8)


# Geometry


def test_stretch_takes_the_whole_frame_to_the_whole_input() -> None:
    fit = plan_fit(WIDE, MODEL, "stretch")
    assert fit.source == (0, 0, 48, 96)
    assert fit.target == (0, 0, 64, 64)


@pytest.mark.parametrize(
    ("size", "target"), [(WIDE, (16, 0, 32, 64)), (TALL, (0, 16, 64, 32))], ids=["wide", "tall"]
)
def test_letterbox_keeps_the_aspect_ratio_and_centres(
    size: tuple[int, int], target: tuple[int, int, int, int]
) -> None:
    fit = plan_fit(size, MODEL, "letterbox")
    assert fit.source == (0, 0, *size)
    assert fit.target == target


@pytest.mark.parametrize(
    ("size", "source"), [(WIDE, (0, 24, 48, 48)), (TALL, (24, 0, 48, 48))], ids=["wide", "tall"]
)
def test_crop_takes_the_largest_centred_part_of_the_input_s_aspect_ratio(
    size: tuple[int, int], source: tuple[int, int, int, int]
) -> None:
    fit = plan_fit(size, MODEL, "crop")
    assert fit.source == source
    assert fit.target == (0, 0, 64, 64)


@pytest.mark.parametrize("mode", FIT_MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (33, 71), (720, 1280)])
def test_source_and_target_lie_inside_frame_and_input(size: tuple[int, int], mode: FitMode) -> None:
    fit = plan_fit(size, MODEL, mode)
    for (top, left, height, width), whole in ((fit.source, size), (fit.target, MODEL)):
        assert top >= 0
        assert left >= 0
        assert height >= 1
        assert width >= 1
        assert top + height <= whole[0]
        assert left + width <= whole[1]


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown fit 'squash', known: stretch, letterbox, crop"):
        plan_fit(WIDE, MODEL, "squash")  # type: ignore[arg-type]


# Frame to input


@pytest.mark.parametrize("mode", FIT_MODES)
@pytest.mark.parametrize("size", [WIDE, TALL, (33, 71), MODEL])
def test_the_input_has_the_model_s_size_and_type(size: tuple[int, int], mode: FitMode) -> None:
    fitted = fit_image(frame(size), plan_fit(size, MODEL, mode))
    assert fitted.shape == (64, 64, 3)
    assert fitted.dtype == np.uint8


@pytest.mark.parametrize("mode", FIT_MODES)
def test_a_frame_of_the_model_s_size_passes_unchanged(mode: FitMode) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(image, plan_fit(MODEL, MODEL, mode)), image)


def test_letterbox_pads_with_grey_and_only_there() -> None:
    fitted = fit_image(frame(WIDE), plan_fit(WIDE, MODEL, "letterbox"))
    assert (fitted[16:48] == 200).all()
    assert (fitted[:16] == PAD_VALUE).all()
    assert (fitted[48:] == PAD_VALUE).all()


def test_crop_shows_the_centre_only() -> None:
    image = frame(WIDE, 10)
    image[:, 24:72] = 200
    assert (fit_image(image, plan_fit(WIDE, MODEL, "crop")) == 200).all()


def test_shrinking_averages() -> None:
    """A one-pixel checkerboard becomes its mean, not a random choice of its pixels."""
    board = np.indices((128, 128)).sum(axis=0) % 2 * 200
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert (fit_image(image, plan_fit((128, 128), MODEL)) == 100).all()


# Answer to frame


@pytest.mark.parametrize("mode", FIT_MODES)
@pytest.mark.parametrize("size", [WIDE, TALL, (33, 71), (7, 200)])
def test_restore_returns_to_the_frame_s_size(size: tuple[int, int], mode: FitMode) -> None:
    mask = np.zeros(MODEL, dtype=np.uint8)
    assert plan_fit(size, MODEL, mode).restore(mask).shape == size


@pytest.mark.parametrize("mode", FIT_MODES)
def test_restoring_at_equal_sizes_changes_nothing(mode: FitMode) -> None:
    mask = np.random.default_rng(0).integers(0, 19, MODEL, dtype=np.uint8)
    np.testing.assert_array_equal(plan_fit(MODEL, MODEL, mode).restore(mask), mask)


@pytest.mark.parametrize("mode", FIT_MODES)
@pytest.mark.parametrize("size", [WIDE, (33, 71), (500, 300)])
def test_indices_stay_indices(size: tuple[int, int], mode: FitMode) -> None:
    """No class appears that was not there: nothing between 3 and 11 is interpolated."""
    mask = np.random.default_rng(0).choice(np.array([3, 11], dtype=np.uint8), MODEL)
    restored = plan_fit(size, MODEL, mode).restore(mask)
    assert restored.dtype == np.uint8
    assert set(np.unique(restored)) <= {3, 11, 255}


def test_pixels_that_a_crop_never_saw_are_255() -> None:
    restored = plan_fit(WIDE, MODEL, "crop").restore(np.zeros(MODEL, dtype=np.uint8))
    assert (restored[:, 24:72] == 0).all()
    assert (restored[:, :24] == 255).all()
    assert (restored[:, 72:] == 255).all()


def test_unseen_pixels_of_a_score_map_are_zero() -> None:
    restored = plan_fit(WIDE, MODEL, "crop").restore(np.ones(MODEL, dtype=np.float32))
    assert restored.dtype == np.float32
    assert (restored[:, 24:72] == 1).all()
    assert (restored[:, :24] == 0).all()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_part_that_a_crop_saw_is_as_if_it_were_the_frame(kind: type[np.generic]) -> None:
    answer = np.random.default_rng(0).integers(0, 200, MODEL).astype(kind)
    restored = plan_fit(WIDE, MODEL, "crop").restore(answer)
    np.testing.assert_array_equal(
        restored[:, 24:72], plan_fit((48, 48), MODEL, "crop").restore(answer)
    )


@pytest.mark.parametrize("mode", FIT_MODES)
def test_a_mask_on_its_way_to_the_frame_takes_what_the_planner_says(mode: FitMode) -> None:
    """Itself, and one of the model's height and the frame's width."""
    size = (540, 960)
    fit, mask = plan_fit(size, MODEL, mode), np.zeros(MODEL, np.uint8)
    fit.restore(mask)  # what is made once
    tracemalloc.start()
    try:
        fit.restore(mask)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    predicted = mask_bytes(MODEL, size, confidence=False)
    assert 0.9 * predicted < peak < predicted + 32_000  # the numbers of rows and columns


def test_padding_never_reaches_the_restored_mask() -> None:
    mask = np.full(MODEL, 9, dtype=np.uint8)
    mask[16:48] = 1  # what the frame covers; the rest is padding
    assert (plan_fit(WIDE, MODEL, "letterbox").restore(mask) == 1).all()


@pytest.mark.parametrize("mode", FIT_MODES)
def test_an_object_comes_back_where_it_was(mode: FitMode) -> None:
    """A square, fitted, thresholded as a model would, and restored, overlaps itself."""
    image = frame((120, 160), 0)
    image[40:80, 60:100] = 255
    fit = plan_fit((120, 160), MODEL, mode)
    found = fit.restore((fit_image(image, fit)[..., 0] > 127).astype(np.uint8)) == 1
    truth = image[..., 0] == 255
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_resize_to_the_same_size_is_the_same_array() -> None:
    image = frame(WIDE)
    assert resize(image, *WIDE, "area") is image


@pytest.mark.parametrize("sizes", [((7, 5), (16, 9)), ((192, 256), (272, 640)), ((9, 12), (4, 5))])
def test_a_mask_has_the_class_under_the_middle_of_each_pixel(
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """In fractions, where nothing is rounded."""
    old, new = sizes
    mask = np.random.default_rng(0).integers(0, 12, old, np.uint8)
    rows, columns = (
        [math.floor(Fraction(2 * k + 1, 2) * a / b) for k in range(b)]
        for a, b in zip(old, new, strict=True)
    )
    expected = [[mask[row, column] for column in columns] for row in rows]
    found = resize(mask, *new, "nearest")
    assert found.flags.c_contiguous
    assert found.tolist() == np.array(expected).tolist()
