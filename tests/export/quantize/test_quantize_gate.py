"""What integers may cost, and what is said when it is more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_mdeq.bundle import RungParity, Verification
from edge_mdeq.errors import ParityError
from mdeq_export.quantize.gate import bound, require_bearable, require_metric


def rung(precision: str, gap: float) -> RungParity:
    return RungParity("ort-cpu", precision, 8, 0, 0, 0, 1, gap, 1, 0.01)


def verified(**gaps: float) -> Verification:
    rungs = tuple(rung(precision, gap) for precision, gap in gaps.items())
    return Verification(8, "scenes", {}, 60, 1e-4, "none", rungs)


def test_a_refined_end_may_be_a_tenth_further_away() -> None:
    require_bearable(verified(fp32=0.1, int8=0.5, refined=0.109))
    with pytest.raises(ParityError, match=r"refined evaluations end 1.11e-01.*fp32 1.00e-01"):
        require_bearable(verified(fp32=0.1, int8=0.2, refined=0.111))


def test_within_a_hundredth_of_the_converged_state_any_refined_end_will_do() -> None:
    require_bearable(verified(fp32=1e-5, refined=0.0099))
    with pytest.raises(ParityError, match=r"allowed is 1\.00e-02"):
        require_bearable(verified(fp32=1e-5, refined=0.0101))


def test_a_refined_end_that_is_no_number_fails() -> None:
    with pytest.raises(ParityError):
        require_bearable(verified(fp32=0.1, refined=float("nan")))


def test_rungs_of_another_profile_are_no_measure() -> None:
    report = verified(fp32=0.1, refined=0.2)
    other = replace(report.rungs[1], profile="tensorrt-rtx")
    require_bearable(replace(report, rungs=(report.rungs[0], other)))


def test_calibration_aims_below_what_the_gate_allows() -> None:
    assert 0.1 < bound(0.1, 0.7) < bound(0.1)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"refined": 0.794, "int8": 0.80}, r"0.7940 in refined and 0.8000 in fp32.*--refine 2"),
        ({"refined": 0.799, "int8": 0.78}, r"metric is 0.7800 in int8.*allowed is 0.01"),
    ],
)
def test_a_metric_that_falls_too_far_is_named(scores: dict[str, float], words: str) -> None:
    with pytest.raises(ParityError, match=words):
        require_metric({"fp32": 0.8} | scores)


def test_a_metric_that_falls_a_little_or_rises_will_do() -> None:
    require_metric({"fp32": 0.8, "int8": 0.791, "refined": 0.81})
