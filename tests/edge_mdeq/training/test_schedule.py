"""What changes over a run: learning rate, evaluations, regularisation; and what decays."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_training import CLASSIFIER, SEGMENTER

from edge_mdeq.model import MDEQ
from edge_mdeq.training.recipe import FinishConfig, JacobianConfig, OptimConfig, Recipe
from edge_mdeq.training.schedule import (
    Plan,
    draw_plan,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_lr,
)

STEPS = 100  # an epoch's


def plans(recipe: Recipe, first: int, last: int) -> list[Plan]:
    return [draw_plan(recipe, step, STEPS) for step in range(first, last)]


# Learning rate


def rates(recipe: Recipe, steps: int) -> list[float]:
    return [learning_rate(recipe, step, STEPS) for step in range(steps)]


def test_the_learning_rate_warms_up_and_falls_to_zero_as_a_cosine() -> None:
    recipe = replace(SEGMENTER, optim=OptimConfig(epochs=10, lr=0.2, warmup_steps=10))
    found = rates(recipe, 1000)
    assert found[0] == pytest.approx(0.02)
    assert found[:10] == sorted(found[:10])
    assert found[250] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2)
    assert found[500] == pytest.approx(0.1)
    assert found[999] < 1e-5
    assert found[9:] == sorted(found[9:], reverse=True)


def test_it_can_end_at_a_rate_of_its_own() -> None:
    optim = OptimConfig(epochs=10, lr=0.2, final_lr=0.05, warmup_steps=0)
    found = rates(replace(SEGMENTER, optim=optim), 1000)
    assert found[0] == 0.2
    assert found[500] == pytest.approx(0.125)
    assert found[999] == pytest.approx(0.05, abs=1e-5)


FINISHING = replace(
    SEGMENTER,
    optim=replace(SEGMENTER.optim, epochs=2, lr=0.2),
    finish=FinishConfig(epochs=1, lr=0.05, evaluations=(1, 1), jacobian_frequency=1.0),
)


def test_the_last_phase_has_a_cosine_of_its_own() -> None:
    found = rates(FINISHING, 300)
    assert found[199] < 1e-3
    assert found[200] == pytest.approx(0.05)
    assert found[250] == pytest.approx(0.025)
    assert found[299] < 1e-4


def test_setting_it_reaches_every_group() -> None:
    optimizer = make_optimizer(MDEQ(SEGMENTER.model), SEGMENTER.optim)
    set_lr(optimizer, 0.123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]


# Plans


def test_the_first_steps_unroll_and_later_ones_solve() -> None:
    recipe = replace(SEGMENTER, solver=replace(SEGMENTER.solver, pretrain_steps=50))
    assert set(plans(recipe, 0, 50)) == {Plan(unrolled=True, evaluations=2, penalty=0.0)}
    later = plans(recipe, 50, 150)
    assert {p.unrolled for p in later} == {False}
    assert {p.evaluations for p in later} == {2, 3}  # both ends included
    assert {p.penalty for p in later} == {0.0, 0.1}


def test_seed_and_step_decide_a_plan() -> None:
    torch.manual_seed(1)
    first = plans(SEGMENTER, 0, 100)
    torch.manual_seed(2)
    assert plans(SEGMENTER, 0, 100) == first
    assert [draw_plan(SEGMENTER, step, STEPS) for step in reversed(range(100))] == first[::-1]
    assert plans(replace(SEGMENTER, seed=1), 0, 100) != first


def test_as_many_steps_are_regularised_as_told() -> None:
    for frequency in (0.0, 0.2, 1.0):
        jacobian = replace(SEGMENTER.jacobian, frequency=frequency)
        optim = replace(SEGMENTER.optim, epochs=20)
        found = plans(replace(SEGMENTER, jacobian=jacobian, optim=optim), 3, 1003)
        share = sum(p.penalty > 0 for p in found) / len(found)
        assert share == pytest.approx(frequency, abs=0.04)


def test_the_last_phase_has_evaluations_and_penalties_of_its_own() -> None:
    assert {p.evaluations for p in plans(FINISHING, 100, 200)} == {2, 3}
    assert set(plans(FINISHING, 200, 300)) == {Plan(False, 1, 0.1)}


PUBLISHED = JacobianConfig(  # arXiv:2106.14342's for ImageNet, with shorter steps
    weight=2.5, frequency=1.0, pretrain_weight=0.03, growth=0.1, growth_steps=50
)


def penalties(jacobian: JacobianConfig, steps: int = 1000) -> list[float]:
    solver = replace(SEGMENTER.solver, pretrain_steps=20)
    optim = replace(SEGMENTER.optim, epochs=10)
    recipe = replace(SEGMENTER, solver=solver, optim=optim, jacobian=jacobian)
    return [p.penalty for p in plans(recipe, 0, steps)]


def test_the_penalty_starts_small_and_grows_in_steps() -> None:
    found = penalties(PUBLISHED)
    assert set(found[:20]) == {0.03}
    assert set(found[20:70]) == {2.5}  # the published code counts from the first solve
    assert set(found[70:120]) == {2.6}
    assert found[999] == pytest.approx(2.5 + 0.1 * (979 // 50))


def test_it_stops_with_an_epoch() -> None:
    found = penalties(replace(PUBLISHED, growth=0.0, stop_epoch=3))
    assert set(found[20:300]) == {2.5}
    assert set(found[300:]) == {0.0}


def test_without_a_weight_there_is_none_whatever_grows() -> None:
    assert set(penalties(replace(PUBLISHED, weight=0.0, pretrain_weight=0.0))) == {0.0}


def test_regularised_steps_move_the_range_of_their_evaluations() -> None:
    solver = replace(SEGMENTER.solver, evaluations=(8, 8), pretrain_steps=0)
    jacobian = replace(SEGMENTER.jacobian, frequency=0.5, jitter=(-2, 1))
    found = plans(replace(SEGMENTER, solver=solver, jacobian=jacobian), 0, 200)
    assert {p.evaluations for p in found if p.penalty} == {6, 7, 8, 9}
    assert {p.evaluations for p in found if not p.penalty} == {8}


# Parameters


@pytest.mark.parametrize("recipe", [SEGMENTER, CLASSIFIER], ids=["segmentation", "classification"])
def test_only_kernels_decay(recipe: Recipe) -> None:
    model = MDEQ(recipe.model)
    decaying, plain = parameter_groups(model, recipe.optim)
    assert decaying["weight_decay"] == recipe.optim.weight_decay
    assert plain["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decaying["params"]} == {"weight"}
    assert all(p.ndim >= 2 for p in decaying["params"])
    kept = {names[id(p)] for p in plain["params"]}
    assert {name for name in names.values() if name.endswith((".gain", ".bias"))} <= kept
    assert len(decaying["params"]) + len(plain["params"]) == len(names)


def test_everything_decays_where_the_recipe_says_so() -> None:
    model = MDEQ(SEGMENTER.model)
    decaying, plain = parameter_groups(model, replace(SEGMENTER.optim, decay_all=True))
    assert plain["params"] == []
    assert len(decaying["params"]) == len(list(model.parameters()))


def test_the_recipe_names_the_optimizer() -> None:
    model = MDEQ(SEGMENTER.model)
    sgd = OptimConfig(epochs=1, name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    optimizer = make_optimizer(model, sgd)
    assert type(optimizer) is torch.optim.SGD
    first = optimizer.param_groups[0]
    assert (first["lr"], first["momentum"], first["nesterov"]) == (0.05, 0.9, True)
    assert first["weight_decay"] == 1e-4
    assert type(make_optimizer(model, replace(sgd, name="adam"))) is torch.optim.Adam
    assert type(make_optimizer(model, replace(sgd, name="adamw"))) is torch.optim.AdamW
