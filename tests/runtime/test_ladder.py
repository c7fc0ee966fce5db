from __future__ import annotations

from itertools import combinations_with_replacement

import pytest

from edge_mdeq.bundle import Rung, Step
from edge_mdeq.errors import SessionError
from mdeq_runtime.ladder import cold_plan, default_counts, plan


def ladder(*counts: int) -> tuple[Rung, ...]:
    return tuple(Rung((Step("fp32", n),), f"solve-k{n}.onnx") for n in counts)


def counts_of(chain: tuple[Rung, ...]) -> list[int]:
    return [rung.evaluations for rung in chain]


@pytest.mark.parametrize("counts", [(1, 2, 4, 8), (1, 3, 4), (2, 5), (3, 7, 9), (4,)])
def test_a_plan_is_a_shortest_sum_of_rungs(counts: tuple[int, ...]) -> None:
    """Against trying every chain there is."""
    for total in range(1, 13):
        lengths = [
            length
            for length in range(1, total + 1)
            if any(sum(chain) == total for chain in combinations_with_replacement(counts, length))
        ]
        if lengths:
            found = counts_of(plan(ladder(*counts), total))
            assert sum(found) == total
            assert len(found) == lengths[0]
        else:
            with pytest.raises(SessionError):
                plan(ladder(*counts), total)


def test_a_plan_prefers_no_greedy_detour() -> None:
    """Six is three and three; the largest rung first would need four, one and one."""
    assert counts_of(plan(ladder(1, 3, 4), 6)) == [3, 3]


def test_a_plan_goes_from_large_to_small() -> None:
    assert counts_of(plan(ladder(1, 8, 2, 4), 15)) == [8, 4, 2, 1]


def test_rungs_of_several_precisions_count_all_their_steps() -> None:
    mixed = Rung((Step("int8", 3), Step("fp32", 2)), "mixed.onnx")
    assert plan((*ladder(2), mixed), 7) == (mixed, *ladder(2))


@pytest.mark.parametrize("wanted", [1, 3, 7, 0, -2])
def test_an_impossible_count_names_the_rungs_and_the_way_out(wanted: int) -> None:
    with pytest.raises(SessionError) as caught:
        plan(ladder(6, 4), wanted)
    assert f"{wanted} iterations" in str(caught.value)
    assert "(4, 6)" in str(caught.value)
    assert f"--iterations {max(wanted, 1)}" in str(caught.value)


def test_a_cold_plan_repeats_the_warm_graph_where_it_divides() -> None:
    rungs = ladder(1, 2, 4, 8)
    assert counts_of(cold_plan(rungs, 8, plan(rungs, 2))) == [2, 2, 2, 2]
    assert counts_of(cold_plan(rungs, 2, plan(rungs, 2))) == [2]


def test_a_cold_plan_is_a_plan_of_its_own_where_it_does_not() -> None:
    rungs = ladder(1, 2, 4, 8)
    assert counts_of(cold_plan(rungs, 9, plan(rungs, 2))) == [8, 1]
    assert counts_of(cold_plan(rungs, 12, plan(rungs, 3))) == [8, 4]  # warm is a chain itself
    assert counts_of(cold_plan(rungs, 8, ())) == [8]
    with pytest.raises(SessionError):
        cold_plan(ladder(2), 3, plan(ladder(2), 2))


def test_by_default_the_largest_rung_is_cold_and_two_warm() -> None:
    assert default_counts(ladder(8, 1, 2, 4)) == (8, 2)
    assert default_counts(ladder(8, 3, 5)) == (8, 3)
    assert default_counts(ladder(1, 4)) == (4, 1)
    assert default_counts(ladder(5)) == (5, 5)
