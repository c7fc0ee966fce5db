"""Broyden's good method with limited memory, as the published MDEQ code uses it.

With g(z) = f(z) - z the inverse Jacobian of g is approximated by B = -I + sum of u_k v_k^T, per
sample (Broyden 1965; memory as in Bai et al., arXiv:1909.01377, appendix B.1):

    p = -B g, z' = z + p, v^T = p^T B, u = (p - B dg) / (v^T dg), B' = B + u v^T

The step p was made as -B g, therefore B dg = B g' + p: one product with B gives dg's and the next
step's, v^T dg is p^T B g' + p^T p, and no residual has to be kept from one step to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.line_search import Trial, choose_trial, first_trial, judge
from edge_mdeq.solvers.residual import inner

__all__ = ["Broyden", "BroydenState"]

State = tuple[Tensor, ...]


class BroydenState(NamedTuple):
    """The next iterate, the step that leads to it, and the rank-one terms of B, oldest first.

    D is the size of a sample's state over all scales. How many there are of each depends on the
    step alone, never on data: the structure is static.

    Attributes:
        z: where f is evaluated next.
        step: the full step p to it, one (B, D); none before the first.
        u: left vectors of B, up to m of (B, D).
        v: right vectors of B, as many.
        trial: of the line search, one; none without it.
    """

    z: State
    step: tuple[Tensor, ...]
    u: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    trial: tuple[Trial, ...]


@dataclass(frozen=True)
class Broyden:
    """Broyden(m); T steps are T + 1 evaluations of f.

    Attributes:
        m: rank-one terms to keep; a further one replaces the oldest. Memory is 2 m + 2 states.
            The published code keeps up to 27, one per step.
        line_search: shorten a step that does not reduce ||g|| (see ``line_search``). Every
            rejected trial is an evaluation, and takes a place in the memory.
    """

    m: int = 8
    line_search: bool = False

    def __post_init__(self) -> None:
        if self.m < 1 or self.m != int(self.m):
            raise ConfigError(f"Broyden m is {self.m}, must be a whole number from 1")
        object.__setattr__(self, "m", int(self.m))  # settings of a manifest are floats
        object.__setattr__(self, "line_search", bool(self.line_search))

    def init(self, z: State) -> BroydenState:
        """Start at ``z`` with B = -I."""
        return BroydenState(z, (), (), (), ())

    def advance(self, state: BroydenState, fz: State) -> BroydenState:
        """The next iterate, given f at the present one."""
        g = flatten(tuple(a - b for a, b in zip(fz, state.z, strict=True)))
        if not state.step:  # with B = -I the first step is g, and leads to f
            trial = (first_trial(dot(g, g)),) if self.line_search else ()
            return BroydenState(fz, (g,), (), (), trial)
        (p,), u, v = state.step, state.u, state.v

        oldest = 1 if len(u) == self.m else 0  # terms of B that its successor no longer has
        kept = product(u[oldest:], v[oldest:], g)
        bg = kept + times(dot(v[0], g), u[0]) if oldest else kept
        p_bg, pp = dot(p, bg), dot(p, p)
        denominator = p_bg + pp  # v^T dg
        numerator = -bg  # p - B dg
        # False for NaN too. Where false, B stays as it is: the published code zeroes NaNs instead.
        tiny = torch.finfo(denominator.dtype).tiny
        usable = torch.minimum(denominator.abs(), pp) > tiny
        if self.line_search:
            accepted, shorter = judge(state.trial[0], dot(g, g))
            numerator = numerator + times(state.trial[0].s - 1, p)
            usable = usable & accepted
        # Scaled so that u and v are of similar size: half precision can hold both.
        size, zero = pp.sqrt(), torch.zeros_like(pp)
        to_u = torch.where(usable, size / denominator, zero)
        to_v = torch.where(usable, 1 / size, zero)
        new_u, new_v = times(to_u, numerator), times(to_v, product(v, u, p))
        terms = (*u[oldest:], new_u), (*v[oldest:], new_v)
        step = -(kept + times(p_bg * to_v, new_u))
        if not self.line_search:
            return BroydenState(moved(state.z, step), (step,), *terms, ())
        # A rejected trial goes back along p instead, to the shorter length.
        move = where(accepted, step, times(shorter.s - state.trial[0].s, p))
        trial = choose_trial(accepted, first_trial(dot(g, g)), shorter)
        return BroydenState(moved(state.z, move), (where(accepted, step, p),), *terms, (trial,))


def flatten(state: State) -> Tensor:
    """All scales side by side, (B, D), so that a term costs two operations and not two per scale."""
    return torch.cat([x.flatten(1) for x in state], dim=1)


def moved(z: State, step: Tensor) -> State:
    """``z`` plus a flat ``step`` (B, D)."""
    parts = torch.split(step, [x[0].numel() for x in z], dim=1)
    return tuple(x + part.view_as(x) for x, part in zip(z, parts, strict=True))


def product(left: tuple[Tensor, ...], right: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """(-I + sum of left_k right_k^T) x, (B, D); left and right exchanged is its transpose."""
    result = -x
    for a, b in zip(left, right, strict=True):
        result = result + times(dot(b, x), a)
    return result


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (B,), in at least fp32."""
    return inner((a,), (b,))


def times(factor: Tensor, x: Tensor) -> Tensor:
    """A (B, D) scaled per sample by (B,), in its own precision."""
    return factor.to(x.dtype).view(-1, 1) * x


def where(choose: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Per sample, ``a`` where ``choose`` (B,) is true and ``b`` elsewhere."""
    return torch.where(choose.view(-1, 1), a, b)
