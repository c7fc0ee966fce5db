"""Gradients through an equilibrium in the ways that training runs: accumulated, mixed, compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from problems import SEGMENTER, Problem, images, mdeq_problem, relative_difference
from torch import Tensor

from edge_mdeq.config import ModelConfig
from edge_mdeq.gradients import compile_cell, implicit, jacobian_penalty, phantom
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, Broyden, Solution, solve
from edge_mdeq.spectral import spectral_radius

Build = Callable[..., MDEQ]

WAYS = pytest.mark.parametrize("way", ["implicit", "phantom"])
ONE_SCALE = ModelConfig(task="segmentation", classes=3, channels=(8,), expansion=1, groups=2)


def answer(
    model: MDEQ, image: Tensor, way: str, tol: float, solves: list[Solution] | None = None
) -> Tensor:
    """Logits of a training step; a list is handed the forward and the backward solves."""
    u = model.inject(image)
    f = model.bind(u)
    with torch.no_grad():
        solution = solve(f, model.zero_state(u), Anderson(), 60, tol, best=True)
    solves = [] if solves is None else solves
    solves.append(solution)
    if way == "implicit":
        z = implicit(f, solution.value, Broyden(), 60, tol, solves.append)
    else:
        z = phantom(f, solution.value, 4, tau=0.8)
    logits: Tensor = model.readout(z)
    return logits


def weighted_sum(logits: Tensor) -> Tensor:
    """Another weight for each number of a sample, the same for each sample."""
    weights = torch.linspace(-1, 2, logits[0].numel()).view_as(logits[0])
    return (weights.to(logits.dtype) * logits).sum()


def taken(model: MDEQ) -> Tensor:
    """All parameters' accumulated gradients, flat; they are reset. Each must have got one."""
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None]
    flat = torch.cat([grad.flatten() for grad in grads.values() if grad is not None])
    model.zero_grad(set_to_none=True)
    return flat


# Accumulation


@WAYS
@pytest.mark.parametrize("order", ["in turn", "both forwards first"])
def test_two_micro_batches_are_one_batch(build_contracting: Build, way: str, order: str) -> None:
    """Where batch norms are frozen. The graphs of two forwards may be alive at once."""
    model, image = build_contracting(SEGMENTER).double(), images(4)
    weighted_sum(answer(model, image, way, 1e-12)).backward()
    whole = taken(model)
    if order == "in turn":
        for part in image.split(2):
            weighted_sum(answer(model, part, way, 1e-12)).backward()
    else:
        losses = [weighted_sum(answer(model, part, way, 1e-12)) for part in image.split(2)]
        for loss in losses:
            loss.backward()
    assert relative_difference(taken(model), whole) < 1e-9


# Mixed precision


def mixed_gradient(
    build: Build, way: str, backward_within: bool = False
) -> tuple[Tensor, list[Solution]]:
    """The gradient under bf16 autocast, and the solves."""
    model, solves = build(SEGMENTER), []
    with torch.autocast("cpu", torch.bfloat16):
        logits = answer(model, images(2, torch.float32), way, 2e-3, solves)
        loss = weighted_sum(logits.float())
        if backward_within:
            loss.backward()
    if not backward_within:
        loss.backward()
    return taken(model), solves


@WAYS
def test_under_autocast_the_gradient_is_that_of_fp32_to_bf16_precision(
    build_contracting: Build, way: str
) -> None:
    """For every parameter: autocast may not lose those whose bf16 copy was made in the untracked
    solve, as torch 2.9's does (pytorch#112583) if it is not told to forget it."""
    mixed, _ = mixed_gradient(build_contracting, way)
    model = build_contracting(SEGMENTER)
    weighted_sum(answer(model, images(2, torch.float32), way, 1e-6)).backward()
    sizes = [p.numel() for p in model.parameters()]
    plain = taken(model)
    assert mixed.dtype == plain.dtype == torch.float32
    assert 1e-4 < relative_difference(mixed, plain) < 0.05
    for a, b in zip(mixed.split(sizes), plain.split(sizes), strict=True):
        assert relative_difference(a, b) < 0.3


@WAYS
def test_the_backward_pass_may_be_within_autocast_or_not(
    build_contracting: Build, way: str
) -> None:
    """Autocast is for f, and has done its work by then."""
    within, _ = mixed_gradient(build_contracting, way, backward_within=True)
    outside, _ = mixed_gradient(build_contracting, way)
    assert torch.equal(within, outside)


def test_under_autocast_f_is_in_bf16_and_the_solvers_norms_are_not(
    build_contracting: Build,
) -> None:
    _, (forward, backward) = mixed_gradient(build_contracting, "implicit")
    assert {x.dtype for x in (*forward.value, *forward.iterate)} == {torch.bfloat16}
    assert {x.dtype for x in (*backward.value, *backward.iterate)} == {torch.float32}
    for solution in (forward, backward):
        assert solution.residual.dtype == torch.float32
        z, fz = (
            torch.cat([x.double().flatten(1) for x in state], dim=1)
            for state in (solution.iterate, solution.value)
        )
        exact = (fz - z).norm(dim=1) / fz.norm(dim=1)
        # The forward differences are themselves in bf16, whose rounding averages out in a norm.
        tolerance = 1e-3 if solution is forward else 1e-5
        torch.testing.assert_close(solution.residual.double(), exact, rtol=tolerance, atol=0)


# Compiled cells


@pytest.fixture
def compiling() -> Iterator[None]:
    """Nothing compiled before or kept afterwards; torch's own setting is back at the end."""
    import torch._functorch.config as functorch_config

    torch._dynamo.reset()
    with functorch_config.patch(donated_buffer=True):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiling")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own doing
@pytest.mark.parametrize(
    ("backend", "config"),
    [
        ("aot_eager", SEGMENTER),
        pytest.param(
            "inductor",
            ONE_SCALE,
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ),
    ],
)
def test_a_compiled_cell_has_the_gradients_of_the_eager_one(
    build_contracting: Build, backend: str, config: ModelConfig
) -> None:
    """Phantom steps come first: a backward pass that keeps nothing, after which compiled code would
    overwrite what the implicit one still needs. Each is done twice."""
    model = build_contracting(config)
    names = list(model.state_dict())
    problem = mdeq_problem(model)
    z = tuple(x + 0.5 for x in problem.zero)

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        return [
            problem.gradient(phantom(problem.bind(), z, 2)),
            problem.gradient(implicit(problem.bind(), z, Anderson(), 8, 0.0)),
            penalty_gradient(problem),
            spectral_radius(problem.bind(), z, iterations=6).growth,
        ]

    eager = gradients()
    compile_cell(model.cell, backend=backend)
    for _ in range(2):
        for compiled, expected in zip(gradients(), eager, strict=True):
            assert relative_difference(compiled, expected) < 1e-10
    assert list(model.state_dict()) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"


def penalty_gradient(problem: Problem) -> Tensor:
    """Of the kernels and norms that it depends on."""
    penalty = jacobian_penalty(problem.bind(), tuple(x + 0.5 for x in problem.zero))
    grads = torch.autograd.grad(penalty, problem.parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])
