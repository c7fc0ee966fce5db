"""Answers to images, of the reference or of a graph, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdeq_export.compose import OUTPUT, RESIDUAL, state_names

__all__ = ["NEXT", "Answer", "Gap", "agreement", "distance", "largest", "worst"]

SMALL_RESIDUAL = 1e-3  # nobody stops below it
NEXT = "next_state"  # what a graph calls the states that it gives

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Answer:
    """A solve's end, for B images.

    Attributes:
        states: (B, C_i, H_i, W_i) of every scale.
        classes: indices, (B, H, W) or (B,).
        residual: (B,).
        readout: the floating-point outputs of the readout, by name: scores (B, classes), or the
            confidence (B, H_0, W_0) of a mask.
        trace: of a converged solve by torch, the lowest residual after each of its K evaluations,
            (K, B).
    """

    states: list[Array]
    classes: Array
    residual: Array
    readout: dict[str, Array]
    trace: Array | None = None

    @staticmethod
    def read(states: list[Array], residual: Array, outputs: Mapping[str, Array]) -> Answer:
        """With all ``outputs`` of a readout, among them a mask or scores."""
        answer = outputs[OUTPUT]
        classes = answer.argmax(axis=1) if answer.ndim == 2 else answer
        floats = {name: x for name, x in outputs.items() if np.issubdtype(x.dtype, np.floating)}
        return Answer(states, classes, residual, floats)

    @property
    def outputs(self) -> dict[str, Array]:
        """All that a ``solve`` graph gives in floating point, by name."""
        states = zip(state_names(len(self.states), NEXT), self.states, strict=True)
        return self.readout | dict(states) | {RESIDUAL: self.residual}


class Gap(NamedTuple):
    """How far a graph's answer is from the reference's; the fields are those of ``RungParity``."""

    state_max_abs: float
    state_rel: float
    residual_max_rel: float
    answer_agreement: float
    outputs: dict[str, float]

    @staticmethod
    def between(found: Answer, wanted: Answer) -> Gap:
        """Measure it, on B images."""
        given, expected = found.outputs, wanted.outputs
        assert given.keys() == expected.keys(), "a graph gives what the reference gives"
        outputs = {name: float(np.abs(given[name] - x).max()) for name, x in expected.items()}
        apart = np.abs(found.residual - wanted.residual)
        return Gap(
            state_max_abs=worst(outputs[name] for name in state_names(len(found.states), NEXT)),
            state_rel=distance(found.states, wanted.states),
            # At the equilibrium itself the residual is rounding: compare it with what matters.
            residual_max_rel=float((apart / np.maximum(wanted.residual, SMALL_RESIDUAL)).max()),
            answer_agreement=agreement(found, wanted),
            outputs=outputs,
        )


def distance(states: Sequence[Array], reference: Sequence[Array]) -> float:
    """``||z - z*|| / ||z*||`` over all scales, the largest of any sample."""
    gap = sum(squares(z - r) for z, r in zip(states, reference, strict=True))
    size = sum(squares(r) for r in reference)
    return float(np.sqrt(np.max(gap / np.maximum(size, np.finfo(np.float64).tiny))))


def squares(x: Array) -> Array:
    """Sum of squares per sample, in double precision."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.asarray((flat * flat).sum(axis=1))


def agreement(found: Answer, wanted: Answer) -> float:
    """The share of pixels (or images) with the same class."""
    return float((found.classes == wanted.classes).mean())


def largest(differences: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each output by itself."""
    return {name: worst(each[name] for each in differences) for name in differences[0]}


def worst(values: Iterable[float]) -> float:
    """The largest; NaN if any is."""
    return float(np.max(list(values)))
