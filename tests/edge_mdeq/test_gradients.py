"""Gradients through an equilibrium against finite differences and against the unrolled loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from edge_mdeq.config import ModelConfig
from edge_mdeq.gradients import implicit, jacobian_penalty, phantom
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, FixedPoint, Solver, relative_residual, solve

State = tuple[Tensor, ...]
Map = Callable[[State], State]

SEGMENTER = ModelConfig(task="segmentation", classes=3, channels=(16, 16), expansion=1)
SHAPES = ((2, 2, 2), (3, 1, 1))


@dataclass
class Problem:
    """A fixed-point problem with parameters, and a scalar of its solution."""

    f: Map
    zero: State
    parameters: list[Tensor]
    solver: Solver

    def loss(self, z: State) -> Tensor:
        """Weights every element differently, so that no two gradients could be swapped."""
        weights = (torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x) for x in z)
        return torch.stack([(w * x).sum() for w, x in zip(weights, z, strict=True)]).sum()

    def equilibrium(self) -> State:
        with torch.no_grad():
            z = solve(self.f, self.zero, FixedPoint(), 400, tol=1e-14).value
            assert float(relative_residual(z, self.f(z)).max()) < 1e-12, "not a contraction"
        return z

    def gradient(self, z: State) -> Tensor:
        """All parameters' gradients of the loss at a tracked ``z``, flat."""
        grads = torch.autograd.grad(self.loss(z), self.parameters)
        return torch.cat([g.flatten() for g in grads])

    def implicit_gradient(self) -> Tensor:
        z = implicit(self.f, self.equilibrium(), self.solver, 200, tol=1e-13)
        return self.gradient(z)


@pytest.fixture
def contraction() -> Problem:
    """z -> 0.8 tanh(W z + b) over two scales and two samples, W of norm 1."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(11, 11, generator=generator, dtype=torch.float64)
    W = (W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    b = torch.randn(2, 11, generator=generator, dtype=torch.float64).requires_grad_()

    def to_state(flat: Tensor) -> State:
        parts = flat.split([8, 3], dim=1)
        return tuple(p.reshape(-1, *s) for p, s in zip(parts, SHAPES, strict=True))

    def f(z: State) -> State:
        flat = torch.cat([x.flatten(1) for x in z], dim=1)
        return to_state(0.8 * torch.tanh(flat @ W.T + b))

    return Problem(f, to_state(torch.zeros(2, 11, dtype=torch.float64)), [W, b], Anderson())


@pytest.fixture
def mdeq(build: Callable[..., MDEQ]) -> Problem:
    """A small MDEQ cell, whose last norms are damped until it contracts; with its injection."""
    cell = build(SEGMENTER).cell.double()
    with torch.no_grad():
        for post in cell.post:
            assert isinstance(post.norm, nn.GroupNorm)
            post.norm.weight.mul_(0.05)
            post.norm.bias.mul_(5)
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(2, 16, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    zero = (torch.zeros_like(u), torch.zeros(2, 16, 2, 2, dtype=torch.float64))
    parameters = [*cell.parameters(), u]
    return Problem(lambda z: cell(z, u), zero, parameters, FixedPoint())


@pytest.fixture(params=["contraction", "mdeq"])
def problem(request: pytest.FixtureRequest) -> Problem:
    value: Problem = request.getfixturevalue(request.param)
    return value


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# Implicit differentiation


def test_the_implicit_gradient_is_that_of_finite_differences(problem: Problem) -> None:
    """Along random directions: the slope of the loss at re-solved equilibria."""
    gradient = problem.implicit_gradient()
    generator = torch.Generator().manual_seed(2)
    step = 1e-5
    for _ in range(2):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        parts = direction.split([p.numel() for p in problem.parameters])
        losses = []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, part in zip(problem.parameters, parts, strict=True):
                    parameter += sign * step * part.view_as(parameter)
            losses.append(float(problem.loss(problem.equilibrium())))
        with torch.no_grad():
            for parameter, part in zip(problem.parameters, parts, strict=True):
                parameter += step * part.view_as(parameter)  # back to where it was
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5)


def test_the_implicit_gradient_is_that_of_the_unrolled_loop(problem: Problem) -> None:
    z = problem.zero
    for _ in range(150):
        z = problem.f(z)
    unrolled = problem.gradient(z)
    assert relative_difference(problem.implicit_gradient(), unrolled) < 1e-6


def test_the_implicit_gradient_does_not_depend_on_the_backward_solver(
    contraction: Problem,
) -> None:
    z = contraction.equilibrium()
    gradients = [
        contraction.gradient(implicit(contraction.f, z, solver, 300, tol=1e-13))
        for solver in (FixedPoint(), FixedPoint(0.6), Anderson())
    ]
    for gradient in gradients[1:]:
        assert relative_difference(gradient, gradients[0]) < 1e-9


def test_the_implicit_gradient_needs_more_than_one_product(contraction: Problem) -> None:
    """Otherwise the comparisons above would accept a gradient through f alone."""
    z = contraction.equilibrium()
    truncated = contraction.gradient(implicit(contraction.f, z, FixedPoint(), 1, tol=0.0))
    assert relative_difference(truncated, contraction.implicit_gradient()) > 1e-2


def test_implicit_returns_f_at_the_equilibrium(problem: Problem) -> None:
    z = problem.equilibrium()
    fz = implicit(problem.f, z, problem.solver, 5, tol=0.0)
    torch.testing.assert_close(tuple(x.detach() for x in fz), problem.f(z), rtol=0, atol=0)


def test_a_second_backward_pass_gives_the_same_gradient(contraction: Problem) -> None:
    z = implicit(contraction.f, contraction.equilibrium(), Anderson(), 200, tol=1e-13)
    loss = contraction.loss(z)
    first = torch.autograd.grad(loss, contraction.parameters, retain_graph=True)
    second = torch.autograd.grad(loss, contraction.parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_memory_of_implicit_does_not_grow_with_the_iterations(contraction: Problem) -> None:
    """What is kept for the backward pass is that of one evaluation of f."""

    def tensors_kept(run: Callable[[], object]) -> int:
        kept = 0

        def count(x: Tensor) -> Tensor:
            nonlocal kept
            kept += 1
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            run()
        return kept

    z = contraction.equilibrium()
    one = tensors_kept(lambda: contraction.f(z))
    assert tensors_kept(lambda: implicit(contraction.f, z, FixedPoint(), 50, 0.0)) <= one + 2


def test_implicit_without_gradients_is_just_f(contraction: Problem) -> None:
    z = contraction.equilibrium()
    with torch.no_grad():
        fz = implicit(contraction.f, z, FixedPoint(), 5, 0.0)
    assert not any(x.requires_grad for x in fz)


# Phantom gradients


def test_the_phantom_gradient_approaches_the_implicit_one_with_more_steps(
    problem: Problem,
) -> None:
    z, exact = problem.equilibrium(), problem.implicit_gradient()
    errors = [
        relative_difference(problem.gradient(phantom(problem.f, z, steps)), exact)
        for steps in (1, 4, 100)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_the_damped_phantom_gradient_approaches_it_too(contraction: Problem) -> None:
    z, exact = contraction.equilibrium(), contraction.implicit_gradient()
    damped = contraction.gradient(phantom(contraction.f, z, 200, tau=0.5))
    assert relative_difference(damped, exact) < 1e-6


def test_phantom_stays_at_the_equilibrium(problem: Problem) -> None:
    z = problem.equilibrium()
    torch.testing.assert_close(phantom(problem.f, z, 3, tau=0.5), z, rtol=1e-10, atol=1e-10)


def test_phantom_steps_follow_the_damping_formula(contraction: Problem) -> None:
    z = tuple(x + 1 for x in contraction.zero)
    for x, fz, after in zip(
        z, contraction.f(z), phantom(contraction.f, z, 1, tau=0.25), strict=True
    ):
        torch.testing.assert_close(after, 0.25 * fz + 0.75 * x)


# The Jacobian penalty


def test_the_penalty_estimates_the_squared_frobenius_norm_per_element(
    contraction: Problem,
) -> None:
    z = tuple(x + 0.3 for x in contraction.zero)
    jacobian = torch.autograd.functional.jacobian(lambda *z: contraction.f(z), z)
    exact = sum(float(block.square().sum()) for row in jacobian for block in row) / 22
    torch.manual_seed(0)
    estimate = jacobian_penalty(contraction.f, z, samples=2000)
    assert float(estimate.detach()) == pytest.approx(exact, rel=0.03)


def test_the_penalty_of_one_sample_is_unbiased(contraction: Problem) -> None:
    torch.manual_seed(0)
    z = contraction.equilibrium()
    single = [float(jacobian_penalty(contraction.f, z).detach()) for _ in range(300)]
    many = float(jacobian_penalty(contraction.f, z, samples=1000).detach())
    assert sum(single) / len(single) == pytest.approx(many, rel=0.1)


def test_the_penalty_is_differentiable_in_the_parameters() -> None:
    """For f(z) = a z it is about a squared, and its derivative twice a."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = (torch.ones(1, 4, 20, 20, dtype=torch.float64),)
    torch.manual_seed(0)
    penalty = jacobian_penalty(lambda z: (a * z[0],), z, samples=4)
    (slope,) = torch.autograd.grad(penalty, a)
    assert float(penalty.detach()) == pytest.approx(0.49, rel=0.1)
    assert float(slope) == pytest.approx(2 * float(penalty.detach()) / 0.7)


def test_lowering_the_penalty_lowers_the_jacobian_of_a_cell(mdeq: Problem) -> None:
    z = mdeq.equilibrium()
    torch.manual_seed(0)
    penalty = jacobian_penalty(mdeq.f, z, samples=8)
    grads = torch.autograd.grad(penalty, mdeq.parameters, allow_unused=True)
    norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
    with torch.no_grad():
        for parameter, grad in zip(mdeq.parameters, grads, strict=True):
            if grad is not None:
                parameter -= 0.1 * penalty * grad / norm**2  # one tenth of the way, to first order
    torch.manual_seed(0)
    after = float(jacobian_penalty(mdeq.f, z, samples=8).detach())
    assert after == pytest.approx(0.9 * float(penalty.detach()), rel=0.05)
