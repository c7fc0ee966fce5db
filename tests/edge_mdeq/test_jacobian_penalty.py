"""The Jacobian penalty against the dense Jacobian and finite differences."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from problems import Problem, State, dense_jacobian, flat_gradient
from torch import Tensor

from edge_mdeq.gradients import jacobian_penalty


def exact_and_spread(problem: Problem, z: State, samples: int) -> tuple[float, float]:
    """||J||_F^2 / numel, and the standard deviation of an estimate of it from normal vectors.

    The variance of e^T A e with A = J J^T is 2 ||A||_F^2.
    """
    J = dense_jacobian(problem.bind(), z)
    numel = J.shape[0] * J.shape[1]
    variance = 2 * float((J @ J.mT).square().sum()) / samples
    return float(J.square().sum()) / numel, variance**0.5 / numel


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_it_estimates_the_squared_frobenius_norm_per_element(
    problem: Problem, offset: float
) -> None:
    z = tuple(x + offset for x in problem.equilibrium())
    exact, spread = exact_and_spread(problem, z, samples=400)
    torch.manual_seed(0)
    estimate = float(jacobian_penalty(problem.bind(), z, samples=400).detach())
    assert spread < 0.15 * exact
    assert abs(estimate - exact) < 3 * spread


def test_one_sample_is_unbiased(contraction: Problem) -> None:
    z = contraction.equilibrium()
    torch.manual_seed(0)
    singles = [float(jacobian_penalty(contraction.bind(), z).detach()) for _ in range(300)]
    exact, spread = exact_and_spread(contraction, z, samples=300)
    assert abs(sum(singles) / len(singles) - exact) < 3 * spread


@pytest.mark.parametrize("samples", [1, 3])
def test_its_gradient_is_the_slope_of_finite_differences(problem: Problem, samples: int) -> None:
    """With the same random vectors, at a fixed state."""
    z = problem.equilibrium()

    def penalty() -> Tensor:
        torch.manual_seed(3)
        return jacobian_penalty(problem.bind(), z, samples)

    gradient = flat_gradient(penalty(), problem.parameters)
    for direction in problem.directions():
        slope = problem.slope(penalty, direction)
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5)


def test_of_a_multiple_it_is_the_square() -> None:
    """For f(z) = a z it is about a squared, and its derivative twice a."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = (torch.ones(1, 4, 20, 20, dtype=torch.float64),)
    torch.manual_seed(0)
    penalty = jacobian_penalty(lambda z: (a * z[0],), z, samples=4)
    (slope,) = torch.autograd.grad(penalty, a)
    assert float(penalty.detach()) == pytest.approx(0.49, rel=0.1)
    assert float(slope) == pytest.approx(2 * float(penalty.detach()) / 0.7)


def test_lowering_it_lowers_the_jacobian_of_a_cell(mdeq: Problem) -> None:
    z = mdeq.equilibrium()

    def penalty() -> Tensor:
        torch.manual_seed(0)
        return jacobian_penalty(mdeq.bind(), z, samples=8)

    before = penalty()
    gradient = flat_gradient(before, mdeq.parameters)
    tenth = -0.1 * before.detach() * gradient / gradient.norm() ** 2  # of the way, to first order
    exact, _ = exact_and_spread(mdeq, z, 8)
    assert mdeq.moved(penalty, tenth) == pytest.approx(0.9 * float(before.detach()), rel=0.05)
    assert mdeq.moved(lambda: dense_norm(mdeq, z), tenth) < 0.97 * exact


def dense_norm(problem: Problem, z: State) -> Tensor:
    J = dense_jacobian(problem.bind(), z)
    return J.square().sum() / (J.shape[0] * J.shape[1])


def test_it_sends_no_gradient_into_the_state(contraction: Problem) -> None:
    z = tuple(x.requires_grad_() for x in contraction.equilibrium())
    penalty = jacobian_penalty(contraction.bind(), z)
    assert torch.autograd.grad(penalty, z, allow_unused=True) == (None, None)


def test_its_sums_are_in_single_precision_at_least() -> None:
    """16 squares of 0.0625 added to 4096 in bfloat16 would change nothing."""
    big = torch.full((1, 1, 64, 64), 1.0)
    small = torch.full((1, 1, 1, 16), 0.0625)
    factors = tuple(x.bfloat16() for x in (big, small))
    z = tuple(torch.zeros_like(x) for x in factors)
    torch.manual_seed(0)
    penalty = jacobian_penalty(lambda z: tuple(a * x for a, x in zip(factors, z, strict=True)), z)
    torch.manual_seed(0)
    eps = [torch.randn_like(x).float() * a.float() for x, a in zip(z, factors, strict=True)]
    expected = sum(float(v.bfloat16().double().square().sum()) for v in eps) / (4096 + 16)
    assert penalty.dtype == torch.float32
    assert float(penalty) == pytest.approx(expected, rel=1e-6)


def test_its_graph_is_freed_without_the_garbage_collector(mdeq: Problem) -> None:
    f, seen = mdeq.bind(), []

    def watched(z: State) -> State:
        fz = f(z)
        seen.extend(weakref.ref(x) for x in (*z, *fz))
        return fz

    z = mdeq.equilibrium()
    gc.collect()
    gc.disable()
    try:
        flat_gradient(jacobian_penalty(watched, z, samples=2), mdeq.parameters)
        assert len(seen) == 4
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()
