"""Gradients through an equilibrium, without keeping the solver's iterations in memory.

Both ways start from the equilibrium z* found without tracking and return a z that equals it in
value and carries the gradient:

- ``phantom``: a few tracked damped steps from z* (Geng et al., arXiv:2111.05177). Cheap, biased.
- ``implicit``: one tracked evaluation; the backward pass solves y = y J + dL/dz for y, which is
  the exact gradient by the implicit function theorem (Bai et al., arXiv:1909.01377, theorem 1).

Both may run under autocast, with gradients accumulated over several batches, on several ranks and
with a cell that was compiled by ``compile_cell``; compile the cell, not the whole training step.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import Solution, Solver, Status, solve
from edge_mdeq.solvers.residual import inner

__all__ = ["compile_cell", "eager", "implicit", "jacobian_penalty", "phantom", "tracked"]

State = tuple[Tensor, ...]
Map = Callable[[State], State]


def phantom(f: Map, z: State, steps: int, tau: float = 1.0) -> State:
    """``steps`` tracked steps z <- tau f(z) + (1 - tau) z from the equilibrium ``z``.

    Raises:
        ConfigError: fewer than one step, which would carry no gradient.
    """
    if steps < 1:
        raise ConfigError(f"a phantom gradient of {steps} steps, need at least 1")
    torch.clear_autocast_cache()  # see ``tracked``
    for _ in range(steps):
        fz = f(z)
        z = tuple(tau * a + (1 - tau) * b for a, b in zip(fz, z, strict=True))
    return z


def implicit(
    f: Map,
    z: State,
    solver: Solver,
    max_evaluations: int,
    tol: float,
    on_backward: Callable[[Solution], None] | None = None,
) -> State:
    """f(z*) with the exact gradient, for an equilibrium ``z`` that was found untracked.

    The gradient is that of the best iterate of the backward solve, per sample, converged or not:
    the one with the lowest ||y J + g - y||, which keeps a solve that diverges from making the
    gradient huge. The graph of one evaluation of f is kept until the backward pass is through.

    Args:
        f: the map, with everything that should receive a gradient bound in.
        z: the equilibrium z*, one (B, C_i, H_i, W_i) per scale.
        solver: finds the fixed point y of y -> y J + g in the backward pass, from y = g.
        max_evaluations: vector-Jacobian products at most.
        tol: a sample's backward solve stops at ||y J + g - y|| <= tol ||g||; 0 runs all of it.
        on_backward: is handed every backward pass's solve, for its status, residuals and count;
            what it raises comes out of the backward pass. It runs in the thread of that pass.
            Without it a solve that ends in NaN or infinity is a RuntimeWarning.

    Raises:
        ConfigError: in a backward pass with create_graph: y is found untracked, and a derivative of
            the gradient would lack y's without a word.
    """
    if not torch.is_grad_enabled():
        return f(z)
    leaves, fz = tracked(f, z)

    def adjoint(grads: State) -> State:
        """The y with y = y J + grads, in at least fp32; the products run in the types of f."""
        grads = tuple(g.to(torch.promote_types(g.dtype, torch.float32)) for g in grads)
        size = length(grads)
        size = torch.where(size == 0, torch.ones_like(size), size)
        unit = divided(grads, size)  # ||g|| = 1: its absolute residual is relative to g

        def step(y: State) -> State:
            return tuple(v + g for v, g in zip(vector_jacobian(fz, leaves, y), unit, strict=True))

        # Autocast, if the backward pass is within it, is for f and not for the solver.
        with torch.autocast(unit[0].device.type, enabled=False):
            solution = solve(step, unit, solver, max_evaluations, tol, best=True, stop_mode="abs")
        solution = replace(
            solution,
            value=scaled(solution.value, size),
            iterate=scaled(solution.iterate, size),
            absolute=solution.absolute * size,
        )
        if on_backward is not None:
            on_backward(solution)
        elif solution.status is Status.NON_FINITE:
            warnings.warn(
                "the backward solve of an implicit gradient met NaN or infinity, and so will the "
                "parameters: either the loss's gradient has it or f's Jacobian; see on_backward",
                RuntimeWarning,
                stacklevel=2,
            )
        return solution.value

    result: State = Adjoint.apply(adjoint, *fz)  # type: ignore[no-untyped-call]
    return result


class Adjoint(torch.autograd.Function):
    """The identity, whose gradient goes through a function of all scales' gradients at once.

    The products that the function needs stop at this node's inputs, and do not come by here again.
    """

    @staticmethod
    def forward(ctx: Any, adjoint: Callable[[State], State], *fz: Tensor) -> State:
        ctx.adjoint = adjoint  # it refers to this node's inputs, not to its outputs: no cycle
        return tuple(x.view_as(x) for x in fz)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ConfigError(
                "an implicit gradient cannot be differentiated itself: backward without "
                "create_graph, or use phantom"
            )
        y = ctx.adjoint(grads)
        return (None, *(a.to(g.dtype) for a, g in zip(y, grads, strict=True)))


def jacobian_penalty(f: Map, z: State, samples: int = 1) -> Tensor:
    """Hutchinson's estimate of ||J_f(z)||_F^2 per element of the state (arXiv:2106.14342, eq. 6).

    Differentiable in the parameters of ``f``; costs one evaluation and a double backward. Compiled
    code cannot be differentiated twice, so here a compiled cell runs eagerly.

    Returns:
        A scalar, the mean over ``samples`` standard normal vectors of ||eps^T J||^2 / numel, where
        numel counts the whole batch; in at least fp32.
    """
    with eager():
        leaves, fz = tracked(f, z)
    numel = sum(x.numel() for x in leaves)
    total = torch.zeros((), device=z[0].device)
    for _ in range(samples):
        eps = tuple(torch.randn_like(x) for x in fz)
        for v in vector_jacobian(fz, leaves, eps, create_graph=True):
            wide = v.to(torch.promote_types(v.dtype, torch.float32))
            total = total + wide.square().sum()
    return total / (samples * numel)


def compile_cell(cell: nn.Module, **options: Any) -> None:
    """``torch.compile`` of a cell in place, such that its graph serves several products.

    By default compiled code overwrites what it kept for the backward pass, once a first backward
    pass has shown that it may, and from then on ``implicit`` fails. This turns it off, for all
    that is compiled later in this process. A compiled product always includes the gradients of the
    kernels, which the backward solve does not ask for: compare its time with the eager one.

    Args:
        cell: ``model.cell``; parameters and their names stay as they are.
        options: for ``torch.compile``, such as ``mode`` or ``backend``.
    """
    import torch._functorch.config as functorch_config

    functorch_config.donated_buffer = False
    cell.compile(**options)


def eager() -> AbstractContextManager[Any]:
    """Within it compiled modules run uncompiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes seconds
        return nullcontext()
    context: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return context


def tracked(f: Map, z: State) -> tuple[State, State]:
    """A detached copy of ``z`` that requires gradients, and f of it.

    In torch 2.9 autocast hands out weights that it cast while nothing was tracked, as in the solve
    before, and their gradients are lost without a word (pytorch#112583): it has to forget them.
    """
    torch.clear_autocast_cache()
    leaves = tuple(x.detach().requires_grad_() for x in z)
    return leaves, f(leaves)


def vector_jacobian(fz: State, leaves: State, y: State, create_graph: bool = False) -> State:
    """y^T J of an evaluation by ``tracked``; zero for a scale that f does not depend on."""
    product = torch.autograd.grad(
        fz,
        leaves,
        tuple(v.to(x.dtype) for v, x in zip(y, fz, strict=True)),
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )
    # In torch 2.9 the zeros that it makes up require gradients, whether there is a graph or not.
    return product if create_graph else tuple(x.detach() for x in product)


def length(x: State) -> Tensor:
    """Each sample's norm over all scales, (B,).

    Squares of very small or large numbers would leave their type's range, as gradients of a scaled
    loss may: the largest element comes first.
    """
    per_scale = torch.stack([part.abs().flatten(1).amax(dim=1) for part in x])
    largest = per_scale.amax(dim=0)
    unit = divided(x, torch.where(largest == 0, torch.ones_like(largest), largest))
    return inner(unit, unit).sqrt() * largest


def scaled(x: State, factor: Tensor) -> State:
    """``x`` times a ``factor`` per sample, (B,)."""
    return tuple(part * factor.to(part.dtype).view(-1, 1, 1, 1) for part in x)


def divided(x: State, size: Tensor) -> State:
    """``x`` over a ``size`` per sample, (B,), whose inverse may be out of range."""
    return tuple(part / size.to(part.dtype).view(-1, 1, 1, 1) for part in x)
