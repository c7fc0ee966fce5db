"""Armijo line search that costs one evaluation per trial, so that it fits into ``advance``.

The published line search evaluates f in a loop of its own. Here every evaluation of a solve is one
trial: it is accepted, or the solver goes back along the same direction and tries a shorter step.
Each sample decides for itself, by tensor selects.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Trial", "choose_trial", "first_trial", "judge"]

DECREASE = 1e-4  # c1: the share of the predicted decrease that is enough
SHORTEST = 1e-2  # no step below this is tried


class Trial(NamedTuple):
    """A step length under trial, per sample; all (B,).

    Attributes:
        s: the length, a multiple of the full step.
        start: ||g||^2 where the step starts from; infinite accepts whatever comes.
        longer: the length that was rejected before, if any.
        phi: ||g||^2 there.
    """

    s: Tensor
    start: Tensor
    longer: Tensor
    phi: Tensor


def first_trial(start: Tensor) -> Trial:
    """The full step from where ||g||^2 is ``start``."""
    one = torch.ones_like(start)
    return Trial(one, start, one, start)


def judge(trial: Trial, phi: Tensor) -> tuple[Tensor, Trial]:
    """Which samples accept their trial, given ||g||^2 there; what to try next where not.

    The minimiser of the quadratic through what is known, then of the cubic (Nocedal and Wright,
    section 3.5), kept within a tenth and a half of the step before. Along the step the slope of
    ||g||^2 is taken to be minus ``start``, as in the published code. A sample that would need less
    than ``SHORTEST`` takes the full step after all.
    """
    s, start, longer, before = trial
    accepted = phi <= start * (1 - DECREASE * s)
    excess, excess_before = phi - start * (1 - s), before - start * (1 - longer)
    quadratic = start * s * s / (2 * excess)
    scale = longer**2 * s**2 * (s - longer)
    a = (longer**2 * excess - s**2 * excess_before) / scale
    b = (s**3 * excess_before - longer**3 * excess) / scale
    cubic = (-b + (b * b + 3 * a * start).abs().sqrt()) / (3 * a)
    within = (cubic >= s / 10) & (cubic <= s / 2)
    shorter = torch.where(s == 1, quadratic, torch.where(within, cubic, s / 2))
    possible = shorter >= SHORTEST  # false for NaN as well
    one = torch.ones_like(s)
    following = Trial(
        torch.where(possible, shorter, one),
        torch.where(possible, start, torch.full_like(start, torch.inf)),
        s,
        phi,
    )
    return accepted, following


def choose_trial(choose: Tensor, a: Trial, b: Trial) -> Trial:
    """Per sample, ``a`` where ``choose`` (B,) is true and ``b`` elsewhere."""
    return Trial(*(torch.where(choose, x, y) for x, y in zip(a, b, strict=True)))
