"""Why a solve starts from zero: one of a few kinds, to count, and in words, to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["COLD_KINDS", "Cold", "ColdKind"]

ColdKind = Literal[
    "first_frame",  # there is no last equilibrium
    "off",  # the session carries none
    "scene_cut",
    "frame_size",
    "reconnect",  # the source was opened again: what lies between is unknown
    "residual",  # the warm start had little to do with this frame
    "non_finite",  # the last solve, or the warm one, ended in NaN or infinity
    "failed",  # the last frame could not be answered
    "reload",  # the bundle was opened again: its states are another model's
    "requested",  # by ``Session.reset``
    "other",  # whatever answered the frame did not say
]
COLD_KINDS: tuple[ColdKind, ...] = get_args(ColdKind)


@dataclass(frozen=True)
class Cold:
    """Why a solve starts from zero.

    Attributes:
        kind: one of ``COLD_KINDS``.
        text: the same in words, which may carry numbers.
    """

    kind: ColdKind
    text: str
