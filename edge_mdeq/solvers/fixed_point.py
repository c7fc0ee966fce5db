"""Damped fixed-point iteration: z <- tau f(z) + (1 - tau) z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from edge_mdeq.errors import ConfigError

__all__ = ["FixedPoint", "FixedPointState"]

State = tuple[Tensor, ...]


class FixedPointState(NamedTuple):
    """Nothing but the next iterate."""

    z: State


@dataclass(frozen=True)
class FixedPoint:
    """The plain iteration, damped by ``tau`` in (0, 1]; 1 is undamped.

    Converges where the spectral radius of the damped Jacobian is below one, which is what
    Jacobian regularisation trains for (arXiv:2106.14342).
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.tau <= 1.0:
            raise ConfigError(f"tau is {self.tau}, must be in (0, 1]")

    def init(self, z: State) -> FixedPointState:
        """Start at ``z``."""
        return FixedPointState(z)

    def init_full(self, z: State) -> FixedPointState:
        """As ``init``: there is no history."""
        return self.init(z)

    def advance(self, state: FixedPointState, fz: State) -> FixedPointState:
        """The next iterate, given f at the present one."""
        if self.tau == 1.0:
            return FixedPointState(fz)
        t = self.tau
        return FixedPointState(tuple(t * f + (1 - t) * z for f, z in zip(fz, state.z, strict=True)))
