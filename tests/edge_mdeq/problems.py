"""Fixed-point problems with parameters, and exact gradients of their solutions, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from contractions import SIZE, to_flat, to_state, zeros
from torch import Tensor

from edge_mdeq.config import ModelConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import FixedPoint, relative_residual, solve

State = tuple[Tensor, ...]
Map = Callable[[State], State]

SEGMENTER = ModelConfig(task="segmentation", classes=3, channels=(8, 16), expansion=1, groups=2)
IMAGE_SIZE = 16  # states of (8, 4, 4) and (16, 2, 2): 192 numbers, few enough for a dense Jacobian


@dataclass
class Problem:
    """A fixed-point problem with parameters, and a scalar of its solution.

    Attributes:
        bind: f with the present parameters bound in, once per solve, as ``MDEQ.bind``.
        zero: where solves start.
        parameters: everything that f depends on.
    """

    bind: Callable[[], Map]
    zero: State
    parameters: list[Tensor]

    def loss(self, z: State) -> Tensor:
        """Weights every element differently, so that no two gradients could be swapped."""
        terms = ((torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x) * x).sum() for x in z)
        return torch.stack(list(terms)).sum()

    def loss_gradient(self, z: State) -> Tensor:
        """dL/dz at ``z``, (B, D)."""
        leaves = tuple(x.detach().requires_grad_() for x in z)
        return to_flat(torch.autograd.grad(self.loss(leaves), leaves))

    @torch.no_grad()
    def equilibrium(self) -> State:
        f = self.bind()
        z = solve(f, self.zero, FixedPoint(), 400, tol=1e-14).value
        assert float(relative_residual(z, f(z)).max()) < 1e-12, "not a contraction"
        return z

    def gradient(self, z: State) -> Tensor:
        """All parameters' gradients of the loss at a tracked ``z``, flat."""
        return flat_gradient(self.loss(z), self.parameters)

    def pulled_back(self, y: Tensor, z: State) -> Tensor:
        """All parameters' gradients of <y, f(z)> for a fixed ``y`` (B, D), flat."""
        return flat_gradient((y * to_flat(self.bind()(z))).sum(), self.parameters)

    def slope(self, value: Callable[[], Tensor], direction: Tensor, step: float = 1e-5) -> float:
        """The central finite difference of ``value`` along a flat ``direction``."""
        after, before = (self.moved(value, sign * step * direction) for sign in (1, -1))
        return (after - before) / (2 * step)

    def moved(self, value: Callable[[], Tensor], shift: Tensor) -> float:
        """``value`` with all parameters moved by a flat ``shift``; they are put back."""
        parts = shift.split([p.numel() for p in self.parameters])
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter += part.view_as(parameter)
        result = float(value().detach())
        with torch.no_grad():
            for parameter, before in zip(self.parameters, kept, strict=True):
                parameter.copy_(before)
        return result

    def directions(self, count: int = 2) -> Iterator[Tensor]:
        """Random unit vectors in the space of all parameters."""
        generator = torch.Generator().manual_seed(2)
        size = sum(p.numel() for p in self.parameters)
        for vector in torch.randn(count, size, generator=generator, dtype=torch.float64):
            yield vector / vector.norm()


def tanh_problem() -> Problem:
    """z -> 0.8 tanh(W z + b) over two scales and two samples, W of norm 1."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    W = (W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    b = torch.randn(2, SIZE, generator=generator, dtype=torch.float64).requires_grad_()

    def f(z: State) -> State:
        return to_state(0.8 * torch.tanh(to_flat(z) @ W.T + b))

    return Problem(lambda: f, zeros(2), [W, b])


def mdeq_problem(model: MDEQ) -> Problem:
    """A small MDEQ from its image on, with two images: every parameter of stem and cell."""
    model, image = model.double(), images(2)

    def bind() -> Map:
        return model.bind(model.inject(image))

    zero = model.zero_state(model.inject(image).detach())
    return Problem(bind, zero, [*model.inject.parameters(), *model.cell.parameters()])


def images(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normalised images, (B, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def dense_jacobian(f: Map, z: State) -> Tensor:
    """df/dz per sample, (B, D, D); samples must not depend on each other."""
    sizes = [x[0].numel() for x in z]

    def g(flat: Tensor) -> Tensor:
        parts = zip(flat.split(sizes, dim=1), z, strict=True)
        return to_flat(f(tuple(part.reshape(x.shape) for part, x in parts))).sum(dim=0)

    rows: Tensor = torch.autograd.functional.jacobian(g, to_flat(z), vectorize=True)  # (D, B, D)
    return rows.transpose(0, 1).detach()


def spectral_radii(jacobian: Tensor) -> Tensor:
    """The largest |eigenvalue| of each (B, D, D), (B,)."""
    return torch.linalg.eigvals(jacobian).abs().amax(dim=1)


def flat_gradient(value: Tensor, parameters: list[Tensor]) -> Tensor:
    """The gradients of ``value``, side by side; zero for what it does not depend on."""
    grads = torch.autograd.grad(value, parameters, materialize_grads=True)
    return torch.cat([g.detach().flatten() for g in grads])


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
