"""Broyden's good method with limited memory, as the published MDEQ code uses it.

With g(z) = f(z) - z the inverse Jacobian of g is approximated by B = -I + sum of u_k v_k^T, per
sample (Broyden 1965; memory as in Bai et al., arXiv:1909.01377, appendix B.1):

    p = -B g, z' = z + p, v^T = p^T B, u = (p - B dg) / (v^T dg), B' = B + u v^T

The step p was made as -B g, therefore B dg = B g' + p: one product with B gives dg's and the next
step's, v^T dg is p^T B g' + p^T p, and no residual has to be kept from one step to the next.

Every term was made for the B before it. Once m are kept, a ring that replaces the oldest leaves the
others without what they build on: on the sample weights such a B drifts until the solve diverges.
Here a sample that has its m terms starts anew with B = -I, at the price of one plain step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.line_search import Trial, choose_trial, first_trial, judge
from edge_mdeq.solvers.residual import inner, select

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
        steps: how many were made since B was -I last, the one with it included, one (B,); none
            before the first. One term less counts, the newest; the others are of before a restart.
    """

    z: State
    step: tuple[Tensor, ...]
    u: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    trial: tuple[Trial, ...]
    steps: tuple[Tensor, ...]


@dataclass(frozen=True)
class Broyden:
    """Broyden(m); T steps are T + 1 evaluations of f.

    Attributes:
        m: rank-one terms to keep; instead of a further one B starts anew. Memory is 2 m + 2
            states. The published code keeps up to 27, one per step, and never fills them.
        line_search: shorten a step that does not reduce ||g|| (see ``line_search``). Every
            rejected trial is an evaluation like any other.
    """

    m: int = 8
    line_search: bool = False

    def __post_init__(self) -> None:
        if not (self.m >= 1 and float(self.m).is_integer()):
            raise ConfigError(f"Broyden m is {self.m}, must be a whole number from 1")
        object.__setattr__(self, "m", int(self.m))  # settings of a manifest are floats
        object.__setattr__(self, "line_search", bool(self.line_search))

    def init(self, z: State) -> BroydenState:
        """Start at ``z`` with B = -I."""
        return BroydenState(z, (), (), (), (), ())

    def init_full(self, z: State) -> BroydenState:
        """Start at ``z`` with a step and m terms of zeros, which change nothing: the same solve.

        Raises:
            ConfigError: with a line search, whose trial has no neutral value.
        """
        if self.line_search:
            raise ConfigError("Broyden's line search has no history of fixed size to carry")
        empty = torch.zeros_like(flatten(z))
        terms = (empty,) * self.m
        return BroydenState(z, (empty,), terms, terms, (), (z[0].new_zeros(len(z[0])),))

    def advance(self, state: BroydenState, fz: State) -> BroydenState:
        """The next iterate, given f at the present one."""
        g = flatten(tuple(a - b for a, b in zip(fz, state.z, strict=True)))
        if not state.step:  # with B = -I the first step is g, and leads to f
            first = (first_trial(dot(g, g)),) if self.line_search else ()
            return BroydenState(fz, (g,), (), (), first, (torch.ones_like(g[:, 0]),))
        (p,), (steps,) = state.step, state.steps
        terms = Terms(state.u, state.v, steps - 1)

        bg = terms.apply(g)
        p_bg, pp = dot(p, bg), dot(p, p)
        denominator = p_bg + pp  # v^T dg
        numerator = -bg  # p - B dg
        # False for NaN too. Where false, B stays as it is: the published code zeroes NaNs instead.
        tiny = torch.finfo(denominator.dtype).tiny
        usable = torch.minimum(denominator.abs(), pp) > tiny
        if self.line_search:  # the step that led here was s p; s cancels everywhere else
            (trial,) = state.trial
            numerator = numerator + times(trial.s - 1, p)
        # Scaled so that u and v are of similar size: half precision can hold both.
        size, zero = pp.sqrt(), torch.zeros_like(pp)
        to_u = torch.where(usable, size / denominator, zero)
        to_v = torch.where(usable, 1 / size, zero)
        new_u, new_v = times(to_u, numerator), times(to_v, terms.apply_transposed(p))
        step = -(bg + times(p_bg * to_v, new_u))

        oldest = 1 if len(state.u) == self.m else 0  # gives its place to the new term
        steps = steps + 1
        if oldest:
            restart = steps > self.m + 1
            step = torch.where(restart.view(-1, 1), g, step)
            steps = torch.where(restart, torch.ones_like(steps), steps)
        u, v = (*state.u[oldest:], new_u), (*state.v[oldest:], new_v)
        after = BroydenState(moved(state.z, step), (step,), u, v, (), (steps,))
        return after_trial(state, after, dot(g, g)) if self.line_search else after


class Terms(NamedTuple):
    """B as its rank-one terms, of which ``live`` (B,) count, the newest ones."""

    u: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    live: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """B x, (B, D)."""
        return self.product(self.u, self.v, x)

    def apply_transposed(self, x: Tensor) -> Tensor:
        """B^T x, (B, D)."""
        return self.product(self.v, self.u, x)

    def product(self, left: tuple[Tensor, ...], right: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """(-I + sum of left_k right_k^T) x, (B, D), over the terms that count."""
        result = -x
        for age, (a, b) in enumerate(zip(reversed(left), reversed(right), strict=True)):
            along = dot(b, x)
            result = result + times(torch.where(self.live > age, along, torch.zeros_like(along)), a)
        return result


def after_trial(before: BroydenState, after: BroydenState, phi: Tensor) -> BroydenState:
    """Per sample, ``after`` if the trial that led to ``before.z`` is accepted, given ||g||^2 there.

    Otherwise back along the same step to a shorter length, with the B that the step was made of.
    """
    (trial,), (p,) = before.trial, before.step
    accepted, shorter = judge(trial, phi)
    back = moved(before.z, times(shorter.s - trial.s, p))
    grown = len(after.u) > len(before.u)
    nothing = (torch.zeros_like(p),) if grown else ()
    return BroydenState(
        select(accepted, after.z, back),
        where(accepted, after.step, before.step),
        where(accepted, after.u, (*nothing, *before.u)),
        where(accepted, after.v, (*nothing, *before.v)),
        (choose_trial(accepted, first_trial(phi), shorter),),
        (torch.where(accepted, after.steps[0], before.steps[0]),),
    )


def flatten(state: State) -> Tensor:
    """All scales side by side, (B, D): a term then costs few operations, not few per scale."""
    return torch.cat([x.flatten(1) for x in state], dim=1)


def moved(z: State, step: Tensor) -> State:
    """``z`` plus a flat ``step`` (B, D)."""
    parts = torch.split(step, [x[0].numel() for x in z], dim=1)
    return tuple(x + part.view_as(x) for x, part in zip(z, parts, strict=True))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (B,), in at least fp32."""
    return inner((a,), (b,))


def times(factor: Tensor, x: Tensor) -> Tensor:
    """A (B, D) scaled per sample by (B,), in its own precision."""
    return factor.to(x.dtype).view(-1, 1) * x


def where(choose: Tensor, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Per sample, the vectors ``a`` where ``choose`` (B,) is true and ``b`` elsewhere."""
    return tuple(torch.where(choose.view(-1, 1), x, y) for x, y in zip(a, b, strict=True))
