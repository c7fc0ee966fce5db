"""The training step's forward pass: its gradients, on one process and on two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from problems import IMAGE_SIZE, SEGMENTER, relative_difference
from ranks import save_gradients
from torch import Tensor

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, Broyden, FixedPoint, Solver, solve
from edge_mdeq.training.equilibrium import EquilibriumTask, normalise
from edge_mdeq.training.recipe import (
    DataConfig,
    GradientConfig,
    OptimConfig,
    Recipe,
    SolverConfig,
)
from edge_mdeq.training.schedule import Plan

IMPLICIT = GradientConfig(kind="implicit", steps=60, tol=1e-12, solver="broyden")
PHANTOM = GradientConfig(kind="phantom", steps=150, tau=0.9)
RECIPE = Recipe(
    model=SEGMENTER,
    input=InputConfig(IMAGE_SIZE, IMAGE_SIZE),
    data=DataConfig(labels=("a", "b", "c"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2))),
    optim=OptimConfig(epochs=1),
    solver=SolverConfig(name="anderson", tol=1e-12),
    gradient=IMPLICIT,
)
SOLVED = Plan(unrolled=False, evaluations=60, penalty=0.0)

MakeTask = Callable[[GradientConfig], EquilibriumTask]


@pytest.fixture
def make_task(build_contracting: Callable[..., MDEQ]) -> MakeTask:
    """A task in eval mode and double precision, whose batch norms are frozen."""

    def make(gradient: GradientConfig) -> EquilibriumTask:
        model = build_contracting(SEGMENTER)
        return EquilibriumTask(model, replace(RECIPE, gradient=gradient)).eval().double()

    return make


def pixels(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, 16, 16, generator=generator, dtype=torch.float64)


def gradient(task: EquilibriumTask, plan: Plan) -> Tensor:
    """All parameters' gradients of a weighted sum of the logits, flat."""
    logits, _, _ = task(pixels(2), plan)
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    grads = torch.autograd.grad((weights * logits).sum(), list(task.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("config", [IMPLICIT, PHANTOM], ids=lambda config: config.kind)
def test_the_gradient_is_that_of_the_unrolled_loop(
    make_task: MakeTask, config: GradientConfig
) -> None:
    """The task unrolls by itself, as it does at the start of a run."""
    task = make_task(config)
    unrolled = gradient(task, Plan(unrolled=True, evaluations=150, penalty=0.0))
    assert relative_difference(gradient(task, SOLVED), unrolled) < 1e-6


def test_the_backward_solve_has_the_recipes_tolerance_and_count(make_task: MakeTask) -> None:
    exact = gradient(make_task(IMPLICIT), SOLVED)
    for config in (replace(IMPLICIT, steps=2), replace(IMPLICIT, tol=0.1)):
        error = relative_difference(gradient(make_task(config), SOLVED), exact)
        assert 1e-3 < error < 1


# The forward solve


@pytest.mark.parametrize(
    ("solver", "backward", "expected"),
    [
        (SolverConfig(), GradientConfig(), (FixedPoint(), FixedPoint())),
        (
            SolverConfig(name="broyden", m=26),
            GradientConfig(kind="implicit", m=27),
            (Broyden(26), Broyden(27)),
        ),
        (
            SolverConfig(name="broyden"),
            GradientConfig(solver="anderson", m=3),
            (Broyden(), Anderson(3)),
        ),
    ],
)
def test_the_recipe_says_how_much_of_the_past_solvers_keep(
    solver: SolverConfig, backward: GradientConfig, expected: tuple[Solver, Solver]
) -> None:
    task = EquilibriumTask(MDEQ(SEGMENTER), replace(RECIPE, solver=solver, gradient=backward))
    assert (task.solver, task.backward_solver) == expected


@pytest.mark.parametrize("best", [False, True])
def test_the_recipe_says_whether_the_best_iterate_is_taken(
    build: Callable[..., MDEQ], best: bool
) -> None:
    """Of a plain iteration that does not converge, and whose last iterate is not its best."""
    model = build(SEGMENTER).double()
    solver = SolverConfig(name="fixed_point", best=best)
    task = EquilibriumTask(model, replace(RECIPE, solver=solver, gradient=GradientConfig(steps=1)))
    _, _, residual = task.eval()(pixels(1), Plan(unrolled=False, evaluations=12, penalty=0.0))
    u = model.inject(normalise(pixels(1), RECIPE.input))
    with torch.no_grad():
        trace = solve(model.bind(u), model.zero_state(u), FixedPoint(), 12).trace[:, 0]
    assert trace.min() < 0.99 * trace[-1]
    assert float(residual) == pytest.approx(float(trace.min() if best else trace[-1]))


# Several ranks


def test_two_ranks_have_the_gradient_of_one_process(make_task: MakeTask, tmp_path: Path) -> None:
    """Two gloo processes with two micro-batches each, through Fabric as training uses it."""
    configs, found = (IMPLICIT, replace(PHANTOM, steps=4)), []
    for ranks, parts in ((1, 1), (2, 2)):
        strategy = "ddp_spawn" if ranks > 1 else "auto"
        fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy)
        tasks = [make_task(config) for config in configs]
        fabric.launch(save_gradients, tasks, pixels(8), parts, tmp_path / "gradients.pt")
        found.append(torch.load(tmp_path / "gradients.pt"))
    for one, two in zip(*found, strict=True):
        assert relative_difference(two, one) < 1e-10
