"""What is looked at while a solve iterates, and what ranges are made of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edge_mdeq.errors import DataError
from mdeq_export.compose import Pieces
from mdeq_export.images import scene
from mdeq_export.quantize.calibrate import Ranges, observe
from mdeq_export.quantize.iteration import Iteration
from mdeq_export.quantize.layers import find_layers
from mdeq_export.quantize.observe import Observer, tightened, visits

IMAGES = np.stack([scene(k, 64, 96) for k in range(2)])


def test_states_of_cold_and_warm_solves_are_visited(pieces: Pieces) -> None:
    found = list(visits(Iteration(pieces), IMAGES))
    seen = {(visit.start, visit.evaluations) for visit in found}
    assert {("cold", 0), ("cold", 1), ("cold", 4), ("warm", 0), ("warm", 2), ("cut", 0)} <= seen
    first = next(visit for visit in found if visit.start == "cold")
    assert all((z == 0).all() for z in first.state)
    carried = next(visit for visit in found if visit.start == "warm")
    assert all((z != 0).any() for z in carried.state)


def test_ranges_hold_every_state_that_was_visited(pieces: Pieces) -> None:
    observer = Observer(pieces.cell)
    for visit in visits(Iteration(pieces), IMAGES):
        observer.look([visit.u, *visit.state])
    for name, seen in observer.ranges().items():
        _, takes, gives = next(layer for layer in observer.layers if layer[0] == name)
        for value in gives:
            assert (np.minimum(seen.lows, 0) <= observer.seen[value].lows + 1e-6).all()
            assert (np.maximum(seen.highs, 0) >= observer.seen[value].highs - 1e-6).all()
        assert seen.low <= 0 <= seen.high
        assert seen.cut_off < 0.05  # what rounds worse if it is kept is rare
        assert takes


def test_an_outlier_that_would_cost_all_others_their_precision_is_cut_off() -> None:
    usual = np.random.default_rng(0).normal(size=500_000)
    low, high = tightened(np.append(usual, [60.0]))
    assert high < 45
    assert low <= -3


def test_a_range_of_nothing_is_one() -> None:
    assert tightened(np.zeros(10)) == (0.0, 0.0)


def test_a_channel_that_is_always_the_same_is_counted(pieces: Pieces, ranges: Ranges) -> None:
    assert all(seen.constant == 0 for seen in ranges.cell.values())
    dead = replace(pieces, cell=pieces.cell.clone())
    layer = find_layers(dead.cell)[0]
    kernel = layer.kernel.const_value.numpy().copy()  # type: ignore[union-attr]
    kernel[:2] = 0
    layer.kernel.const_value = ir.tensor(kernel, name=layer.kernel.name)
    found = observe(dead, IMAGES, False, lambda message: None)
    assert found.cell[layer.name].constant == 2


def test_a_solve_that_diverges_is_refused(pieces: Pieces) -> None:
    broken = replace(pieces, cell=pieces.cell.clone())
    layer = find_layers(broken.cell)[-1]
    kernel = layer.kernel.const_value.numpy() * np.float32(np.inf)  # type: ignore[union-attr]
    layer.kernel.const_value = ir.tensor(kernel, name=layer.kernel.name)
    with pytest.raises(DataError, match=r"NaN or infinity.*--f-solver auto"):
        observe(broken, IMAGES, False, lambda message: None)
