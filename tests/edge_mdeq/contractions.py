"""Maps on small states whose fixed points are known, and the solvers that should find them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edge_mdeq.solvers import Anderson, Broyden, FixedPoint

State = tuple[Tensor, ...]
Map = Callable[[State], State]

SHAPES = ((2, 2, 2), (3, 1, 1))  # two scales, 11 numbers per sample
SIZE = 11
EVERY_SOLVER = pytest.mark.parametrize(
    "solver",
    [
        FixedPoint(),
        FixedPoint(0.7),
        Anderson(),
        Anderson(m=1),
        Anderson(m=6, beta=0.8),
        Broyden(),
        Broyden(m=1),
        Broyden(m=3),
        Broyden(line_search=True),
    ],
    ids=str,
)


def to_state(flat: Tensor) -> State:
    """(B, 11) to tensors (B, C, H, W)."""
    parts = flat.split([8, 3], dim=1)
    return tuple(p.reshape(-1, *s) for p, s in zip(parts, SHAPES, strict=True))


def to_flat(state: State) -> Tensor:
    return torch.cat([x.flatten(1) for x in state], dim=1)


def zeros(batch: int, dtype: torch.dtype = torch.float64) -> State:
    return to_state(torch.zeros(batch, SIZE, dtype=dtype))


def symmetric(radius: float, seed: int = 0) -> Tensor:
    """A symmetric (11, 11) matrix with eigenvalues spread over -radius..radius."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(-radius, radius, SIZE, dtype=torch.float64)) @ q.T


def offsets(batch: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SIZE, generator=generator, dtype=torch.float64)


def linear(A: Tensor, b: Tensor) -> Map:
    """z -> A z + b."""
    return lambda z: to_state(to_flat(z) @ A.T + b)


def nonlinear(A: Tensor, b: Tensor) -> Map:
    """z -> tanh(A z + b)."""
    return lambda z: to_state(torch.tanh(to_flat(z) @ A.T + b))


def scaled(factors: list[float], offset: float = 1.0) -> Map:
    """z -> factor z + offset, with a factor per sample."""
    column = torch.tensor(factors, dtype=torch.float64)[:, None]
    return lambda z: to_state(column * to_flat(z) + offset)
