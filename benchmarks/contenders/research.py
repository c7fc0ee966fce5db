"""How the equilibrium is found where MDEQ was published: PyTorch and Broyden's method.

The published number of steps runs to its end, as the published tolerance on ``||f(z) - z||`` is in
effect never met. What stops at a relative residual of 1e-3 is there for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from contenders.base import AbsentError, Answer, Case, Contender

if TYPE_CHECKING:
    from torch import Tensor

    from edge_mdeq.model import MDEQ

__all__ = ["EAGER", "pixels", "research"]

LIBRARIES = ("torch", "edge_mdeq.weights", "edge_mdeq.solvers", "onnxruntime", "mdeq_runtime")
TOLERANCE = 1e-3
EAGER = "PyTorch eager, Broyden, published steps"

Solve = Callable[["MDEQ", "Tensor"], tuple[Any, float]]  # model, injection -> values, residual


def research(case: Case) -> list[Contender]:
    """The same weights in PyTorch: our solver, TorchDEQ's, and f compiled."""
    steps = case.published.evaluations
    ways: dict[str, Callable[[Case], Answer]] = {
        EAGER: partial(answering, solve=partial(broyden, evaluations=steps, tol=0.0)),
        "... stopped at 1e-3": partial(
            answering, solve=partial(broyden, evaluations=steps, tol=TOLERANCE)
        ),
        "TorchDEQ, Broyden, published steps": partial(
            answering, solve=partial(torchdeq, steps=steps - 1, stop=case.published.stop)
        ),
        "torch.compile of f, Broyden, published steps": partial(compiled, evaluations=steps),
    }
    if case.memory_only:
        ways = {EAGER: ways[EAGER]}
    return [
        Contender(
            name=name,
            kind="research",
            prepare=partial(way, case),
            start="cold",
            evaluations=steps,
            libraries=LIBRARIES,
            memory=not name.startswith(("...", "torch.compile")),
        )
        for name, way in ways.items()
    ]


def answering(case: Case, solve: Solve) -> Answer:
    """What answers an image from a cold start: stem, solve, readout, mask or class."""
    import torch

    from edge_mdeq.weights import load_weights

    torch.set_num_threads(case.threads)
    model, card = load_weights(case.weights)
    model.eval()
    size, segments = case.size, card.model.task == "segmentation"

    def answer(image: np.ndarray) -> float:
        with torch.inference_mode():
            u = model.inject(pixels(image, card.input.mean, card.input.std))
            values, residual = solve(model, u)
            logits = model.readout(values)
            if segments:
                logits = torch.nn.functional.interpolate(
                    logits, size, mode="bilinear", align_corners=True
                )
            logits.argmax(dim=1)
        return residual

    return answer


def pixels(image: np.ndarray, mean: Any, std: Any) -> Tensor:
    """(1, 3, H, W) float, normalised, of an RGB image (H, W, 3) uint8."""
    import torch

    found = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()[None] / 255
    return (found - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def broyden(model: MDEQ, u: Tensor, evaluations: int, tol: float) -> tuple[Any, float]:
    """This project's Broyden in PyTorch, with all its terms kept, the best iterate returned."""
    from edge_mdeq.solvers import Broyden, solve

    solver = Broyden(m=evaluations)
    found = solve(model.bind(u), model.zero_state(u), solver, evaluations, tol, best=True)
    return found.value, float(found.residual.max())


def torchdeq(model: MDEQ, u: Tensor, steps: int, stop: str) -> tuple[Any, float]:
    """TorchDEQ's Broyden on the same f."""
    try:
        from torchdeq import get_deq
    except ImportError as error:
        raise AbsentError(f"{error}; pip install --no-deps torchdeq") from error
    deq = get_deq(f_solver="broyden", f_max_iter=steps, f_tol=TOLERANCE, f_stop_mode=stop).eval()
    f = model.bind(u)
    found, info = deq(lambda *z: f(z), list(model.zero_state(u)))
    return found[-1], float(info["rel_lowest"].max())


def compiled(case: Case, evaluations: int) -> Answer:
    """f compiled by torch.compile, weight norm folded; the solver as it is."""
    import torch

    from edge_mdeq.solvers import Broyden, solve

    cells: dict[int, Any] = {}

    def solving(model: MDEQ, u: Tensor) -> tuple[Any, float]:
        if id(model) not in cells:
            cells[id(model)] = torch.compile(model.freeze().cell, dynamic=False)
        cell = cells[id(model)]
        found = solve(
            lambda z: cell(z, u), model.zero_state(u), Broyden(m=evaluations), evaluations,
            best=True,
        )  # fmt: skip
        return found.value, float(found.residual.max())

    answer = answering(case, solving)
    try:
        answer(np.zeros((*case.size, 3), np.uint8))
    except Exception as error:  # no compiler, or one that fails: torch has many ways to say so
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AbsentError(f"torch.compile failed: {lines[0][:200]}") from error
    return answer
