"""Which layers compute in integers: a costly few are spared, and every rung keeps its bound."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_mdeq.errors import ParityError
from mdeq_export.compose import Pieces
from mdeq_export.quantize import calibrate as module
from mdeq_export.quantize.calibrate import Calibration, Ranges, calibrate, spare, work
from mdeq_export.quantize.layers import find_layers

FP32 = {2: 0.3, 4: 0.1, 8: 0.02}  # state errors of solves in single precision


def test_layers_are_spared_up_to_a_twentieth_of_the_multiply_adds() -> None:
    effort = {"a": 1, "b": 3, "c": 2, "d": 94}
    assert spare(["a", "b", "c", "d"], effort) == ["a", "b"]
    assert spare(["d", "c", "b", "a"], effort) == ["c", "b"]  # one that is too large bars no other


def choose(
    pieces: Pieces, ranges: Ranges, monkeypatch: pytest.MonkeyPatch, tolerable: dict[int, int]
) -> Calibration:
    """With a refined solve of N within its bound if at most ``tolerable[N]`` layers are integer."""

    class Trial(module.Trial):
        def alone(self, name: str, evaluations: int) -> float:
            return 0.001

        def solve_error(self, names: Sequence[str], precisions: Sequence[str]) -> float:
            count = len(precisions)
            bad = "int8" in precisions and len(names) > tolerable[count]
            return FP32[count] * (1.2 if bad else 1.0)

    monkeypatch.setattr(module, "Trial", Trial)
    return calibrate(pieces, ranges, (), sorted(tolerable), 1, False, lambda message: None)


def test_every_rung_has_to_keep_its_bound_not_the_longest_alone(
    pieces: Pieces, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = len(find_layers(pieces.cell))
    found = choose(pieces, ranges, monkeypatch, {2: layers, 4: layers - 3, 8: layers})
    assert len(found.names) <= layers - 3
    assert (found.evaluations, found.fp32, found.refined) == (8, 0.02, 0.02)


def test_of_layers_that_harm_alike_those_that_save_the_least_go_first(
    pieces: Pieces, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = find_layers(pieces.cell)
    found = choose(pieces, ranges, monkeypatch, {8: len(layers) - 1})
    effort = {layer.name: work(layer) for layer in layers}
    floating = effort.keys() - set(found.names)
    assert floating
    assert max(effort[name] for name in floating) <= min(effort[name] for name in found.names)


def test_where_half_of_the_work_would_have_to_be_floating_it_is_refused(
    pieces: Pieces, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ParityError, match=r"refined solves of 4 evaluations end 1.20e-01.*allowed is 1.10e-01"
    ):
        choose(pieces, ranges, monkeypatch, {4: 0, 8: 0})
