"""What is tuned: a student's answers beside its teacher's, and the losses between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tuning import REFERENCE, Trained, answer, recipe_for

from edge_mdeq.training.equilibrium import normalise
from edge_mdeq.training.objective import make_objective
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.tune import (
    Draw,
    TuneSettings,
    TuneTask,
    distance,
    divergence,
    draw,
    iterate,
)
from edge_mdeq.weights import load_weights


def make_task(trained: Trained, settings: TuneSettings) -> tuple[TuneTask, Recipe, Tensor, Tensor]:
    """The task on a fixed batch: images in 0..1 and their targets, at the input's size."""
    weights, data = trained
    recipe = recipe_for(weights)
    model = load_weights(weights)[0]
    objective = make_objective(recipe, data)
    items = [objective.val_set[k] for k in range(2)]
    image = torch.stack([torch.from_numpy(image) for image, _ in items]) / 255
    target = (
        torch.as_tensor([0, 0])
        if isinstance(items[0][1], int)
        else torch.stack([torch.from_numpy(mask) for _, mask in items]).long()
    )
    return TuneTask(model, model.freeze(), recipe, settings), recipe, image, target


def total(found: dict[str, Tensor]) -> Tensor:
    """What the answers lack of the teacher's, and of agreeing with one another."""
    gaps = [divergence(found[name], found["target"]) for name in ("cold", "warm", "far")]
    return torch.stack(gaps).sum() + 0.5 * found["agree"]


def test_the_teacher_gets_no_gradient_and_never_changes(trained: Trained) -> None:
    task, _, image, _ = make_task(trained, TuneSettings(2))
    teacher = task.teacher[0]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in task.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    task.train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    found = task(image, image.flip(3), Draw(3, 1.0))
    assert not found["target"].requires_grad
    (total(found) + found["penalty"]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in task.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert torch.equal(task.converged(image), found["target"])


def test_the_teacher_s_answer_is_the_converged_one(trained: Trained) -> None:
    task, recipe, image, _ = make_task(trained, TuneSettings(2, tol=0.0))
    teacher = task.teacher[0]
    torch.testing.assert_close(task.converged(image), answer(teacher, image, recipe, REFERENCE))
    task.settings = replace(task.settings, tol=1e30)  # any residual will do
    torch.testing.assert_close(task.converged(image), answer(teacher, image, recipe, 1))


def test_the_student_s_answers_are_those_of_its_iterations(trained: Trained) -> None:
    task, recipe, image, _ = make_task(trained, TuneSettings(3, warm=2))
    task.eval()
    moved = image.roll(2, dims=3)
    found = {k: v.detach() for k, v in task(image, moved, Draw(4, 0.0)).items()}
    model = task.model
    torch.testing.assert_close(found["cold"], answer(model, image, recipe, 3))
    torch.testing.assert_close(found["far"], answer(model, image, recipe, 3 + 4 + 1))
    with torch.no_grad():
        u = model.inject(normalise(moved, recipe.input))
        last = iterate(model.bind(u), model.zero_state(u), 3 + 4)
        u = model.inject(normalise(image, recipe.input))
        warm = iterate(model.bind(u), last, 2)
        torch.testing.assert_close(found["warm"], model.readout(warm))
        cold = iterate(model.bind(u), model.zero_state(u), 3)
        goal = iterate(model.bind(u), cold, 5)
    torch.testing.assert_close(found["agree"], distance(cold, goal) + distance(warm, goal))
    assert float(found["penalty"]) == 0


def test_the_loss_falls_on_a_fixed_batch(trained: Trained) -> None:
    task, _, image, target = make_task(trained, TuneSettings(1))
    assert len(target) == len(image)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = total(task(image, image.roll(1, dims=3), Draw(3, 0.0)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert losses[3] < losses[0]


def test_the_divergence_is_kullback_and_leibler_s() -> None:
    have, want = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    p, q = want.softmax(dim=1), have.softmax(dim=1)
    expected = sum(
        float(p[b, k, x] * math.log(p[b, k, x] / q[b, k, x]))
        for b in range(3) for k in range(4) for x in range(2)
    )  # fmt: skip
    assert float(divergence(have, want)) == pytest.approx(expected / 6, rel=1e-5)
    assert float(divergence(want + 5, want)) == pytest.approx(0, abs=1e-6)


def test_a_weighted_divergence_counts_rare_classes_more() -> None:
    """Weights of one change nothing; a class of weight zero does not count at all."""
    have, want = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    plain = divergence(have, want)
    assert float(divergence(have, want, torch.full((4,), 7.0))) == pytest.approx(float(plain))
    sure = 50 * F.one_hot(torch.tensor([[0, 1], [0, 1]]), 4).permute(0, 2, 1).float()
    wrong = sure.flip(2)
    wrong[:, :, 0] = sure[:, :, 0]  # only where the target is class 1
    even, rare, none = (
        float(divergence(wrong, sure, torch.tensor([1.0, weight, 1, 1]))) for weight in (1, 9, 0)
    )
    assert even == pytest.approx(25, rel=1e-3)
    assert rare == pytest.approx(45, rel=1e-3)
    assert none == pytest.approx(0, abs=1e-3)


def test_the_distance_is_relative_per_sample() -> None:
    goal = (torch.full((2, 1, 2, 2), 3.0), torch.full((2, 4, 1, 1), 4.0))
    z = (goal[0].clone(), goal[1] * torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))
    assert float(distance(z, goal)) == pytest.approx(0.5 * 4 * 16 / (4 * 9 + 4 * 16))


def test_seed_and_step_decide_a_draw() -> None:
    settings = TuneSettings(2, far=(2, 4), jacobian=0.7, frequency=0.25)
    draws = [draw(settings, 0, step) for step in range(800)]
    assert [draw(settings, 0, step) for step in range(800)] == draws
    assert [draw(settings, 1, step) for step in range(800)] != draws
    assert {d.far for d in draws} == {2, 3, 4}
    assert {d.penalty for d in draws} == {0.0, 0.7}
    assert sum(d.penalty > 0 for d in draws) / 800 == pytest.approx(0.25, abs=0.05)
