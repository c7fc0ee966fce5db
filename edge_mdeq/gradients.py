"""Gradients through an equilibrium, without keeping the solver's iterations in memory.

Both ways start from the equilibrium z* found without tracking and return a z that equals it in
value and carries the gradient:

- ``phantom``: a few tracked damped steps from z* (Geng et al., arXiv:2111.05177). Cheap, biased.
- ``implicit``: one tracked evaluation; the backward pass solves y = y J + dL/dz for y, which is
  the exact gradient by the implicit function theorem (Bai et al., arXiv:1909.01377, theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edge_mdeq.solvers import Solver, solve

__all__ = ["implicit", "jacobian_penalty", "phantom"]

State = tuple[Tensor, ...]
Map = Callable[[State], State]


def phantom(f: Map, z: State, steps: int, tau: float = 1.0) -> State:
    """``steps`` tracked steps z <- tau f(z) + (1 - tau) z from the equilibrium ``z``."""
    for _ in range(steps):
        fz = f(z)
        z = tuple(tau * a + (1 - tau) * b for a, b in zip(fz, z, strict=True))
    return z


def implicit(f: Map, z: State, solver: Solver, max_evaluations: int, tol: float) -> State:
    """f(z*) with the exact gradient, for an equilibrium ``z`` that was found untracked.

    Args:
        f: the map, with everything that should receive a gradient bound in.
        z: the equilibrium z*, one (B, C_i, H_i, W_i) per scale.
        solver: finds the fixed point y of y -> y J + g in the backward pass.
        max_evaluations: vector-Jacobian products at most.
        tol: relative residual at which the backward solve may stop.
    """
    leaves = tuple(x.detach().requires_grad_() for x in z)
    fz = f(leaves)
    flat = torch.cat([x.flatten(1) for x in fz], dim=1)  # one tensor, so that one hook sees all
    if not flat.requires_grad:
        return fz

    def backward(grad: Tensor) -> Tensor:
        pieces = unflatten(grad, fz)

        def step(y: State) -> State:
            with torch.enable_grad():
                vjp = torch.autograd.grad(fz, leaves, y, retain_graph=True)
            return tuple(v + g for v, g in zip(vjp, pieces, strict=True))

        solution = solve(step, pieces, solver, max_evaluations, tol, best=True)
        return torch.cat([y.flatten(1) for y in solution.value], dim=1)

    hook: Any = flat.register_hook  # untyped in torch
    hook(backward)  # the products above stop at `fz`, and do not come by here again
    return unflatten(flat, fz)


def unflatten(flat: Tensor, like: State) -> State:
    """Split (B, D) into tensors shaped like ``like``."""
    sizes = [x[0].numel() for x in like]
    return tuple(
        part.view_as(x) for part, x in zip(torch.split(flat, sizes, dim=1), like, strict=True)
    )


def jacobian_penalty(f: Map, z: State, samples: int = 1) -> Tensor:
    """Hutchinson's estimate of ||J_f(z)||_F^2 per element of the state (arXiv:2106.14342, eq. 6).

    Differentiable in the parameters of ``f``; costs one evaluation and a double backward.

    Returns:
        A scalar, the mean over ``samples`` standard normal vectors of ||eps^T J||^2 / numel, where
        numel counts the whole batch.
    """
    leaves = tuple(x.detach().requires_grad_() for x in z)
    fz = f(leaves)
    numel = sum(x.numel() for x in leaves)
    total = torch.zeros((), device=z[0].device)
    for _ in range(samples):
        eps = tuple(torch.randn_like(x) for x in fz)
        vjp = torch.autograd.grad(fz, leaves, eps, create_graph=True)
        total = total + torch.stack([v.float().square().sum() for v in vjp]).sum()
    return total / (samples * numel)
