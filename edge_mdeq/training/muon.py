"""Muon: momentum, made orthogonal, for kernels; AdamW for everything else.

A kernel as a matrix (C_out, C_in k k) has a gradient of few large and many small singular values.
Muon steps along all of them alike (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
Liu et al. 2025, arXiv:2502.16982). A cell that meets itself again and again is worse conditioned
than layers in a row, and gains more. ``torch.optim.Muon`` takes matrices only, and no other
parameters beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, published with the method
EPSILON = 1e-7
RMS = 0.2  # of an element of the step, about that of AdamW's: one learning rate serves both


class Muon(torch.optim.Optimizer):
    """Groups with "matrices" true take Muon's step, the others AdamW's.

    Args:
        groups: parameter groups, each with "matrices" and "weight_decay"; what is under "matrices"
            has two dimensions or more.
        lr: learning rate.
        momentum: of Muon, with Nesterov's look ahead.
        betas: of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "matrices": False}
        super().__init__(groups, defaults | {"momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` is evaluated first if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = muon_step if group["matrices"] else adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    direction = move(parameter.grad, self.state[parameter], group)
                    parameter.add_(direction, alpha=-group["lr"])
        return loss


def muon_step(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The direction for a kernel; ``state`` moves on."""
    momentum = group["momentum"]
    average: Tensor = state.setdefault("average", torch.zeros_like(gradient))
    average.lerp_(gradient, 1 - momentum)
    ahead = gradient.lerp(average, momentum).flatten(1)
    step = orthogonalised(ahead) * (RMS * max(ahead.shape) ** 0.5)
    direction: Tensor = step.view_as(gradient)
    return direction


def adam_step(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The direction for a gain, a bias or the classifier; ``state`` moves on."""
    beta1, beta2 = group["betas"]
    first: Tensor = state.setdefault("first", torch.zeros_like(gradient))
    second: Tensor = state.setdefault("second", torch.zeros_like(gradient))
    count: int = state.get("count", 0) + 1
    state["count"] = count
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (second / (1 - beta2**count)).sqrt() + 1e-8
    direction: Tensor = first / (1 - beta1**count) / scale
    return direction


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V^T of ``matrix`` = U S V^T, by a Newton-Schulz iteration in bfloat16.

    Its singular values end up between 0.7 and 1.2, which is enough for a step.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = (x.T if tall else x).to(matrix.dtype)
    return result
