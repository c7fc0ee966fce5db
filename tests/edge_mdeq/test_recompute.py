"""``cell.recompute`` changes what is kept for the backward pass, and no gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edge_mdeq.config import ModelConfig
from edge_mdeq.gradients import implicit, jacobian_penalty, phantom
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, FixedPoint, solve

State = tuple[Tensor, ...]
CONFIG = ModelConfig(
    task="segmentation", classes=3, channels=(16, 16, 32), expansion=2, dropout=0.2
)


def gradients(
    build: Callable[..., MDEQ], recompute: bool, way: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Gradients of a loss that depends on every parameter, with dropout, in float64."""
    torch.manual_seed(0)
    model = build(CONFIG).train().double()
    model.cell.recompute = recompute
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    u = model.inject(image)
    f = model.bind(u)
    with torch.no_grad():
        z = solve(f, model.zero_state(u), FixedPoint(), 3).value
    way(model, f, z).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def by_implicit(model: MDEQ, f: Callable[[State], State], z: State) -> Tensor:
    """Several products with the Jacobian, each of which computes the blocks again."""
    return model.readout(implicit(f, z, Anderson(), 5, tol=0.0)).square().sum()


def by_phantom(model: MDEQ, f: Callable[[State], State], z: State) -> Tensor:
    return model.readout(phantom(f, z, 3, tau=0.7)).square().sum()


def by_penalty(model: MDEQ, f: Callable[[State], State], z: State) -> Tensor:
    """Differentiates twice through the blocks that are computed again."""
    torch.manual_seed(1)
    return jacobian_penalty(f, z, samples=1)


def by_all(model: MDEQ, f: Callable[[State], State], z: State) -> Tensor:
    torch.manual_seed(1)
    return by_implicit(model, f, z) + jacobian_penalty(f, z, samples=2)


@pytest.mark.parametrize("way", [by_implicit, by_penalty])
def test_gradients_are_identical(build: Callable[..., MDEQ], way: Callable[..., Tensor]) -> None:
    kept, recomputed = (gradients(build, flag, way) for flag in (False, True))
    assert kept.keys() == recomputed.keys()
    assert any(name.startswith("cell.blocks.2.conv2") for name in kept)
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize("way", [by_phantom, by_all])
def test_gradients_of_several_evaluations_differ_by_rounding_only(
    build: Callable[..., MDEQ], way: Callable[..., Tensor]
) -> None:
    """Each evaluation derives its kernels, so that their gradients are summed in another order."""
    kept, recomputed = (gradients(build, flag, way) for flag in (False, True))
    assert kept.keys() == recomputed.keys()
    assert {name.split(".")[0] for name in kept} == {"inject", "cell", "readout"}
    for name, gradient in kept.items():
        torch.testing.assert_close(gradient, recomputed[name], rtol=1e-11, atol=1e-11)


def test_the_blocks_run_again_in_the_backward_pass_only_if_asked(
    build: Callable[..., MDEQ],
) -> None:
    for recompute, runs in ((False, 1), (True, 2)):
        cell = build(CONFIG).cell
        cell.recompute = recompute
        seen: list[bool] = []
        cell.blocks[0].norm1.register_forward_hook(lambda *_: seen.append(True))  # noqa: B023
        z = tuple(torch.randn(1, c, 8 >> i, 8 >> i) for i, c in enumerate(CONFIG.channels))
        torch.stack([x.sum() for x in cell(z, z[0])]).sum().backward()
        assert len(seen) == runs


def test_products_with_the_jacobian_leave_no_activation_or_kernel_behind(
    build: Callable[..., MDEQ],
) -> None:
    """The backward solve asks for a product tens of times, and keeps the graph.

    What each leaves until the graph goes is weight norm's own: one norm per output channel, since
    a product with respect to z does not visit the derivation of the kernels.
    """
    cell = build(CONFIG).cell
    cell.recompute = True
    z = tuple(
        torch.randn(1, c, 8 >> i, 8 >> i, requires_grad=True) for i, c in enumerate(CONFIG.channels)
    )
    fz = cell(z, z[0].detach())
    gc.collect()
    alive = []
    for _ in range(4):
        torch.autograd.grad(fz, z, fz, retain_graph=True)
        tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
        storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
        alive.append(sum(storages.values()))
    norms = sum(p.nbytes for name, p in cell.blocks.named_parameters() if name.endswith("gain"))
    assert alive[3] - alive[0] <= 3 * norms


def test_a_frozen_copy_never_recomputes(build: Callable[..., MDEQ]) -> None:
    model = build(CONFIG)
    model.cell.recompute = True
    frozen = model.freeze()
    assert not frozen.cell.recompute
    assert model.cell.recompute
