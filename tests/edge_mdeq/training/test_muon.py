"""Muon against what it is defined by, and against torch's own where that takes the parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_training import SEGMENTER
from torch import Tensor, nn

from edge_mdeq.model import MDEQ
from edge_mdeq.training.muon import Muon, orthogonalised
from edge_mdeq.training.recipe import OptimConfig
from edge_mdeq.training.schedule import make_optimizer

SHAPES = [(8, 8), (4, 32), (32, 4), (16, 144)]


def run(parameter: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps with the gradients of a fixed quadratic."""
    scale = torch.linspace(0.5, 2, parameter.numel()).view_as(parameter)
    for _ in range(steps):
        parameter.grad = scale * parameter.detach()
        optimizer.step()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_step_has_the_singular_vectors_of_the_gradient_and_near_equal_values(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalised(matrix) @ v.T
    values = inside.diagonal()
    assert ((values > 0.6) & (values < 1.3)).all()
    assert (inside - torch.diag(values)).abs().max() < 0.05  # bfloat16


def test_the_size_of_the_gradient_does_not_matter() -> None:
    matrix = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonalised(1e-4 * matrix), orthogonalised(matrix), atol=0.05)


def test_a_gradient_of_zero_gives_no_step() -> None:
    assert (orthogonalised(torch.zeros(4, 8)) == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_moves_as_under_torchs_muon(shape: tuple[int, int]) -> None:
    def start() -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))

    ours, theirs = start(), start()
    run(ours, Muon([{"params": [ours], "matrices": True, "weight_decay": 0.1}], lr=0.02), 8)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    run(theirs, reference, 8)
    assert not torch.allclose(ours, start(), atol=1e-3)
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_a_kernel_moves_as_the_matrix_that_it_is() -> None:
    values = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    kernel, matrix = nn.Parameter(values.clone()), nn.Parameter(values.flatten(1).clone())
    for parameter in (kernel, matrix):
        run(parameter, Muon([{"params": [parameter], "matrices": True}], lr=0.02), 4)
    assert torch.equal(kernel.flatten(1), matrix)


def test_what_is_no_matrix_moves_as_under_adamw() -> None:
    def start() -> nn.Parameter:
        return nn.Parameter(torch.linspace(-1, 1, 12))

    ours, theirs = start(), start()
    run(ours, Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.02), 10)
    run(theirs, torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1), 10)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_closure_is_evaluated_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Muon([{"params": [parameter]}], lr=0.1)

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert (parameter < 1).all()


def stepped(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> MDEQ:
    torch.manual_seed(0)
    model = MDEQ(SEGMENTER.model)
    optimizer = optimizer_of(model)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter)
        optimizer.step()
    return model


def test_a_recipe_gives_it_the_inner_kernels_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = MDEQ(SEGMENTER.model)
    config = OptimConfig(epochs=1, name="muon", lr=0.01, weight_decay=0.05)
    optimizer = make_optimizer(model, config)
    assert type(optimizer) is Muon
    matrices = {id(p) for g in optimizer.param_groups if g["matrices"] for p in g["params"]}
    kernels = {
        id(m.weight)
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and name != "inject.stem.0"
    }
    assert matrices == kernels
    all_of_them = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(all_of_them) == sorted(id(p) for p in model.parameters())
    decays = {g["weight_decay"] for g in optimizer.param_groups if g["matrices"]}
    assert decays == {0.05}


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    config = OptimConfig(epochs=1, name="muon", lr=0.01)
    saved: dict[str, object] = {}

    def resumed(model: nn.Module) -> torch.optim.Optimizer:
        first = make_optimizer(model, config)
        for _ in range(2):
            for parameter in model.parameters():
                values = torch.sin(torch.arange(parameter.numel()).float())
                parameter.grad = values.view_as(parameter)
            first.step()
        saved.update(first.state_dict())
        second = make_optimizer(model, config)
        second.load_state_dict(saved)
        return second

    went_on = stepped(resumed, 2)
    straight = stepped(lambda model: make_optimizer(model, config), 4)
    for a, b in zip(went_on.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
