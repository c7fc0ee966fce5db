"""Integer grids: what numbers a tensor of integers stands for, and how much is lost on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "activation_grid", "weight_grid"]

Array = NDArray[Any]

# Without VNNI, x86 adds two products of uint8 and int8 in 16 bits, and cuts off what does not fit.
# Two of 255 * 64 fit. A 7-bit kernel gives the same sums on every processor, and is no slower.
WEIGHT_LIMIT = 64
SYMMETRIC_LIMIT = 127


@dataclass(frozen=True, eq=False)
class Grid:
    """``scale * (q - zero_point)`` for integers q of a type.

    Attributes:
        scale: float32, a scalar or one per channel.
        zero_point: uint8 or int8, of the same shape; its type is that of q.
        limit: the largest |q| used of int8.
    """

    scale: Array
    zero_point: Array
    limit: int = SYMMETRIC_LIMIT

    def quantise(self, x: Array, axis: int = 0) -> Array:
        """The nearest integers, ends included; a grid per channel lies along ``axis``."""
        kind = self.zero_point.dtype
        low, high = (0, 255) if kind == np.uint8 else (-self.limit, self.limit)
        scale, zero = (column(a, x.ndim, axis) for a in (self.scale, self.zero_point))
        return np.asarray(np.clip(np.rint(x / scale) + zero, low, high), kind)

    def dequantise(self, q: Array, axis: int = 0) -> Array:
        """The numbers that integers stand for, float32."""
        scale, zero = (column(a, q.ndim, axis) for a in (self.scale, self.zero_point))
        return np.asarray((q.astype(np.float32) - zero) * scale, np.float32)


def column(a: Array, ndim: int, axis: int) -> Array:
    """``a`` as float32, broadcast along an axis if it is one number per channel."""
    a = a.astype(np.float32)
    sizes = [-1 if k == axis else 1 for k in range(ndim)]
    return np.asarray(a if a.ndim == 0 else a.reshape(sizes))


def activation_grid(low: Array | float, high: Array | float, symmetric: bool) -> Grid:
    """The finest grid that reaches from ``low`` to ``high``, and has zero on it.

    Zero is what convolutions pad with. A range of nothing gets a step of one: all of it is zero.

    Args:
        low, high: a scalar, or one per channel.
        symmetric: int8 around zero, else uint8 from end to end.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    if symmetric:
        scale = np.maximum(-low, high) / SYMMETRIC_LIMIT
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        return Grid(scale, np.zeros(scale.shape, np.int8))
    scale = (high - low) / 255
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return Grid(scale, np.rint(-low / scale).astype(np.uint8))


def weight_grid(kernel: Array, symmetric: bool = False) -> Grid:
    """The grid of a kernel (C_out, ...): int8, one step per output channel, its largest at the end.

    To cut off the largest does not pay: at 7 bits their error outweighs what finer steps save. A
    channel of zeros gets a step of one.

    Args:
        kernel: (C_out, C_in, ...).
        symmetric: for accelerators, which sum without loss: all of int8 is used.
    """
    limit = SYMMETRIC_LIMIT if symmetric else WEIGHT_LIMIT
    largest = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
    scale = np.where(largest > 0, largest / limit, 1.0).astype(np.float32)
    return Grid(scale, np.zeros(len(kernel), np.int8), limit)
