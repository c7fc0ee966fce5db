"""Anderson acceleration: the next iterate mixes the last m, so that their residuals cancel.

With G the residuals f(z) - z of the last m iterates, the weights alpha minimise ||alpha G|| under
sum(alpha) = 1 (Walker and Ni 2011; ``lam`` and ``beta`` as in the published DEQ code). The
published bordered system [[0, 1], [1, G G^T + lam I]] is solved here by elimination of
(G G^T + ridge I) a = 1 and alpha = a / sum(a), which is the same answer, needs no linear-algebra
operator, and so can be exported to ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.residual import inner

__all__ = ["Anderson", "AndersonState"]

State = tuple[Tensor, ...]

# Absolute, so that the system stays solvable at residual zero. A bound and not a term: the exporter
# drops the addition of what is below 1e-8.
RIDGE_FLOOR = 1e-30


class AndersonState(NamedTuple):
    """The next iterate and up to m - 1 earlier pairs, oldest first.

    The number of pairs depends on the step alone, never on data: the structure is static. A pair of
    zeros stands for one that is not there yet.
    """

    z: State
    past_z: tuple[State, ...]
    past_f: tuple[State, ...]


@dataclass(frozen=True)
class Anderson:
    """Anderson(m) with mixing ``beta``.

    Attributes:
        m: how many iterates are mixed, 1 to 6.
        beta: 1 mixes values of f only; smaller values mix in the iterates.
        lam: ridge, relative to the largest squared residual norm in the history, so that it
            regularises alike at every scale of convergence.
    """

    m: int = 5
    beta: float = 1.0
    lam: float = 1e-4

    def __post_init__(self) -> None:
        if not 1 <= self.m <= 6 or self.m != int(self.m):
            raise ConfigError(f"Anderson m is {self.m}, must be 1 to 6")
        object.__setattr__(self, "m", int(self.m))  # settings of a manifest are floats
        if not 0.0 < self.beta <= 1.0:
            raise ConfigError(f"Anderson beta is {self.beta}, must be in (0, 1]")
        if self.lam <= 0.0:
            raise ConfigError(f"Anderson lam is {self.lam}, must be positive")

    def init(self, z: State) -> AndersonState:
        """Start at ``z`` with an empty history."""
        return AndersonState(z, (), ())

    def init_full(self, z: State) -> AndersonState:
        """Start at ``z`` with m - 1 pairs of zeros, which have no say: the same solve."""
        empty = tuple(tuple(torch.zeros_like(x) for x in z) for _ in range(self.m - 1))
        return AndersonState(z, empty, empty)

    def advance(self, state: AndersonState, fz: State) -> AndersonState:
        """The next iterate, given f at the present one."""
        all_z, all_f = (*state.past_z, state.z), (*state.past_f, fz)
        alpha = self.weights(all_z, all_f)
        z = mix(alpha, all_f)
        if self.beta != 1.0:
            mixed_z = mix(alpha, all_z)
            z = tuple(self.beta * a + (1 - self.beta) * b for a, b in zip(z, mixed_z, strict=True))
        keep = self.m - 1
        return AndersonState(z, all_z[-keep:] if keep else (), all_f[-keep:] if keep else ())

    def weights(self, all_z: tuple[State, ...], all_f: tuple[State, ...]) -> list[Tensor]:
        """The mixing weights alpha, one (B,) per iterate; they sum to one."""
        g = [
            tuple(f - z for f, z in zip(fs, zs, strict=True))
            for zs, fs in zip(all_z, all_f, strict=True)
        ]
        size = len(g)
        gram = [[inner(g[max(i, j)], g[min(i, j)]) for j in range(i + 1)] for i in range(size)]
        diagonal = torch.stack([gram[i][i] for i in range(size)])
        ridge = (self.lam * diagonal.amax(dim=0)).clamp(min=RIDGE_FLOOR)
        # Divided by the ridge the system is I + G G^T / ridge: well scaled, even at residual zero.
        lower = [[entry / ridge for entry in row] for row in gram]
        for i in range(size):
            lower[i][i] = lower[i][i] + 1.0
        # An earlier iterate without any residual has no say: it is an empty place in the history,
        # or the equilibrium, where the newest iterate is as well.
        ones = torch.ones_like(ridge)
        a = solve_spd(lower, [*(gram[i][i].sign() for i in range(size - 1)), ones])
        total = torch.stack(a).sum(dim=0)
        return [entry / total for entry in a]


def mix(alpha: list[Tensor], states: tuple[State, ...]) -> State:
    """The sum of ``states`` weighted per sample by ``alpha``."""
    mixed = []
    for scale in zip(*states, strict=True):
        weighted = [
            weight.to(x.dtype).view(-1, 1, 1, 1) * x for weight, x in zip(alpha, scale, strict=True)
        ]
        total = weighted[0]
        for term in weighted[1:]:
            total = total + term
        mixed.append(total)
    return tuple(mixed)


def solve_spd(lower: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """Solve A x = b for a symmetric positive definite A, its lower triangle and b of (B,) given.

    LDL^T elimination, unrolled; the number of operations depends on the size alone.
    """
    size = len(lower)
    a = [row[:] for row in lower]
    x = right[:]
    for k in range(size):
        for i in range(k + 1, size):
            factor = a[i][k] / a[k][k]
            for j in range(k + 1, i + 1):
                a[i][j] = a[i][j] - factor * a[j][k]
            x[i] = x[i] - factor * x[k]
    for k in reversed(range(size)):
        for i in range(k + 1, size):
            x[k] = x[k] - a[i][k] * x[i]
        x[k] = x[k] / a[k][k]
    return x
