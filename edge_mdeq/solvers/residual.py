"""How far an iterate is from being a fixed point."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inner", "relative_residual", "residuals", "select"]

State = tuple[Tensor, ...]

# Keeps 0/0 finite. The published solvers add it; a bound does the same and survives the exporter,
# which takes what is below 1e-8 for zero and drops such an addition.
EPSILON = 1e-9


def inner(a: State, b: State) -> Tensor:
    """Inner product over all scales, per sample and in at least fp32, (B,)."""
    total: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        product = x.to(torch.promote_types(x.dtype, torch.float32)) * y
        part = product.sum(dim=tuple(range(1, product.ndim)))
        total = part if total is None else total + part
    assert total is not None, "a state has at least one scale"
    return total


def residuals(z: State, fz: State) -> tuple[Tensor, Tensor]:
    """The absolute residual ``||f(z) - z||`` and the relative one, over all scales, each (B,).

    The published code calls them modes "abs" and "rel".
    """
    difference = tuple(f - x for f, x in zip(fz, z, strict=True))
    absolute = inner(difference, difference).sqrt()
    return absolute, absolute / inner(fz, fz).sqrt().clamp(min=EPSILON)


def relative_residual(z: State, fz: State) -> Tensor:
    """``||f(z) - z|| / ||f(z)||`` over all scales, (B,)."""
    return residuals(z, fz)[1]


def select(choose: Tensor, a: State, b: State) -> State:
    """Per sample, ``a`` where ``choose`` (B,) is true and ``b`` elsewhere."""
    return tuple(torch.where(choose.view(-1, 1, 1, 1), x, y) for x, y in zip(a, b, strict=True))
