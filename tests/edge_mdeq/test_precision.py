"""Which rungs belong to a precision, and what is said where there are none."""

from __future__ import annotations

import pytest

from edge_mdeq.bundle import Parts, Profile, Rung, Step, WeightsFile
from edge_mdeq.bundle.precision import chosen, precision_of, select
from edge_mdeq.errors import ConfigError


def rung(*steps: tuple[str, int]) -> Rung:
    name = "-".join(f"{precision}-k{count}" for precision, count in steps)
    return Rung(tuple(Step(*step) for step in steps), f"graphs/ort-cpu/solve-{name}.onnx")


def parts(precision: str) -> Parts:
    return Parts(precision, "inject.onnx", (rung((precision, 1)),), "readout.onnx", {})


def profile(*rungs: Rung) -> Profile:
    kinds = dict.fromkeys(step.precision for each in rungs for step in each.steps)
    weights = tuple(WeightsFile(kind, f"weights-{kind}.bin", 1) for kind in kinds)
    return Profile(21, weights, rungs, tuple(parts(kind) for kind in kinds))


SINGLE = [rung(("fp32", 1)), rung(("fp32", 2)), rung(("fp32", 4))]
INTEGER = [rung(("int8", 1)), rung(("int8", 4))]
REFINED = [rung(("int8", 2), ("fp32", 2))]
MIXED = profile(*SINGLE, *INTEGER, *REFINED)


def test_a_rungs_precision_is_that_of_its_steps() -> None:
    assert precision_of(SINGLE[0]) == "fp32"
    assert precision_of(INTEGER[0]) == "int8"
    assert precision_of(REFINED[0]) == "refined"


@pytest.mark.parametrize(
    ("precision", "rungs", "kind"),
    [
        ("fp32", SINGLE, "fp32"),
        ("int8", INTEGER, "int8"),
        ("refined", [*SINGLE[:2], *REFINED], "fp32"),  # for fewer than it has, in full precision
    ],
)
def test_a_precision_has_its_own_rungs_and_parts(
    precision: str, rungs: list[Rung], kind: str
) -> None:
    found = select(MIXED, precision)
    assert list(found.rungs) == rungs
    assert [part.precision for part in found.parts] == [kind]


def test_a_bundle_without_int8_is_taken_as_it_is() -> None:
    half = profile(rung(("fp16", 2)))
    assert chosen(half, None, "fp32", "x") is half
    assert select(half, "fp32") is half
    alone = profile(*INTEGER)  # as one rung of a bundle by itself is measured
    assert chosen(alone, None, "refined", "x") is alone


@pytest.mark.parametrize("precision", ["int8", "refined"])
def test_a_precision_that_a_bundle_lacks_is_named_with_what_to_do(precision: str) -> None:
    with pytest.raises(ConfigError, match=r"nano was exported without int8.*--int8"):
        chosen(profile(*SINGLE), precision, "fp32", "nano")
    with pytest.raises(ConfigError, match=r"nano holds fp32, int8, not refined.*--refine 1"):
        chosen(profile(*SINGLE, *INTEGER), "refined", "int8", "nano")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'int4', known: fp32, int8, refined"):
        select(MIXED, "int4")
