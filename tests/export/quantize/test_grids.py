"""Integer grids: their step, their zero, and the kernels that no processor's sums overflow on."""

from __future__ import annotations

import numpy as np
import pytest

from mdeq_export.quantize.grids import WEIGHT_LIMIT, activation_grid, weight_grid

RANGES = [(-1.0, 3.0), (0.0, 6.0), (-2.5, 0.0), (0.5, 2.0), (-1e-6, 1e-6)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_rounding_within_the_range_is_at_most_half_a_step(
    low: float, high: float, symmetric: bool
) -> None:
    grid = activation_grid(low, high, symmetric)
    x = np.random.default_rng(0).uniform(min(low, 0), max(high, 0), 1000).astype(np.float32)
    back = grid.dequantise(grid.quantise(x))
    # The ends lie on whole steps from zero, so that the last one may reach out by half a step.
    assert np.abs(back - x).max() <= 0.5 * grid.scale * 1.01 + 0.5 * grid.scale * (not symmetric)
    assert np.median(np.abs(back - x)) <= 0.5 * grid.scale


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_zero_is_on_the_grid_exactly(low: float, high: float, symmetric: bool) -> None:
    grid = activation_grid(low, high, symmetric)
    zero = np.zeros(3, np.float32)
    assert (grid.dequantise(grid.quantise(zero)) == 0).all()


def test_a_range_of_nothing_stands_for_zero() -> None:
    grid = activation_grid(np.zeros(2), np.array([0.0, 4.0]), symmetric=False)
    x = np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_allclose(grid.dequantise(grid.quantise(x, axis=1), axis=1), x, atol=1e-6)


def test_symmetric_activations_have_a_zero_point_of_zero() -> None:
    assert activation_grid(-1.0, 7.0, symmetric=True).zero_point == 0


def test_two_products_of_a_kernel_fit_into_sixteen_bits() -> None:
    """x86 without VNNI adds two products of uint8 and int8 with saturation."""
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    integers = weight_grid(kernel).quantise(kernel).astype(np.int64)
    assert np.abs(integers).max() <= WEIGHT_LIMIT
    assert 2 * 255 * WEIGHT_LIMIT < 2**15


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_kernel_is_rounded_by_at_most_half_its_channels_step(symmetric: bool) -> None:
    kernel = np.random.default_rng(1).standard_t(3, size=(8, 16, 3, 3)).astype(np.float32)
    grid = weight_grid(kernel, symmetric)
    apart = np.abs(grid.dequantise(grid.quantise(kernel)) - kernel).max(axis=(1, 2, 3))
    assert (apart <= 0.501 * grid.scale).all()


def test_a_channel_of_zeros_stays_one() -> None:
    kernel = np.zeros((2, 3, 1, 1), np.float32)
    kernel[1] = 0.5
    grid = weight_grid(kernel)
    np.testing.assert_allclose(grid.dequantise(grid.quantise(kernel)), kernel, rtol=1e-2)
