"""Which graphs of a profile compute in which precision, and the choice between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from edge_mdeq.bundle.manifest import Profile, Rung
from edge_mdeq.errors import ConfigError

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_precision",
    "chosen",
    "precision_of",
    "select",
    "usual_precision",
]

Precision = Literal["fp32", "int8", "refined"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def precision_of(rung: Rung) -> str:
    """That of all its evaluations; "refined" if the last ones are finer than the first."""
    kinds = {step.precision for step in rung.steps}
    return kinds.pop() if len(kinds) == 1 else "refined"


def check_precision(precision: str | None) -> None:
    """Refuse what is no precision.

    Raises:
        ConfigError: with those that there are.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}, known: {', '.join(PRECISIONS)}")


def usual_precision(profile: Profile) -> Precision:
    """What sessions use if nobody says otherwise: refined rungs if there are any, else int8."""
    kinds = {precision_of(rung) for rung in profile.rungs}
    return "refined" if "refined" in kinds else "int8" if "int8" in kinds else "fp32"


def chosen(profile: Profile, asked: str | None, usual: str, name: str) -> Profile:
    """``profile`` in the precision that is asked for, or else in the bundle's usual one.

    A profile whose rungs are all of one kind needs no choice, and is taken as it is.

    Raises:
        ConfigError: what is asked for is no precision, or the profile lacks it.
    """
    if asked is None and len({precision_of(rung) for rung in profile.rungs}) == 1:
        return profile
    return select(profile, asked or usual, name)


def select(profile: Profile, precision: str, name: str = "these graphs") -> Profile:
    """``profile`` with the rungs and parts of one precision alone.

    In a bundle without int8 "fp32" means its graphs as they are, half precision included. Refined
    rungs have more evaluations than their full-precision end; for fewer those in FP32 are kept.
    A solve in parts is "refined" by the parts in FP32: a host loop that stops when it likes does
    not know which evaluation is the last.

    Args:
        profile: of a bundle.
        precision: one of ``PRECISIONS``.
        name: of the profile, for the message.

    Raises:
        ConfigError: no such precision, or the profile lacks it.
    """
    check_precision(precision)
    kinds = {precision_of(rung) for rung in profile.rungs}
    if "int8" not in kinds:
        if precision == "fp32":
            return profile
        raise ConfigError(
            f"{name} was exported without int8; use precision 'fp32', or export it again with "
            "--int8"
        )
    rungs = [rung for rung in profile.rungs if precision_of(rung) == precision]
    if not rungs:
        raise ConfigError(
            f"{name} holds {', '.join(sorted(kinds))}, not {precision}; use one of these, or "
            "export it again with --int8 --refine 1"
        )
    if precision == "refined":
        fewest = min(rung.evaluations for rung in rungs)
        whole = (rung for rung in profile.rungs if precision_of(rung) == "fp32")
        rungs = [*(rung for rung in whole if rung.evaluations < fewest), *rungs]
    wanted = "int8" if precision == "int8" else "fp32"
    parts = tuple(parts for parts in profile.parts if parts.precision == wanted)
    return replace(profile, rungs=tuple(rungs), parts=parts)
