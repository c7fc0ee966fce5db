"""How small a residual half precision can reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts
from mdeq_export.compose import INJECTION, RESIDUAL, state_names
from mdeq_export.sessions import open_session
from mdeq_export.verify import Reference, injection_type

__all__ = ["residual_floor"]

FLOOR_EVALUATIONS = 20


def residual_floor(
    parts: Parts, root: Path, reference: Reference, images: NDArray[np.uint8], batch: int = 1
) -> float:
    """The relative residual that an ``advance`` graph does not get below, however long it runs.

    From the reference's equilibrium of each group of images, one evaluation at a time without a
    history; the lowest residual of each image, the highest of all.
    """
    single = next(rung for rung in parts.advance if rung.evaluations == 1)
    session = open_session(root / single.graph)
    names = [output.name for output in session.get_outputs()]
    floors = []
    for first in range(0, len(images), batch):
        group = np.take(images, range(first, first + batch), axis=0, mode="wrap")
        problem = reference.bind(group)
        goal = problem.converged()
        feeds = {INJECTION: problem.injection().astype(injection_type(session))}
        for given in session.get_inputs():
            if given.name.startswith("history"):
                shape = [n if isinstance(n, int) else len(group) for n in given.shape]
                feeds[given.name] = np.zeros(shape, np.float32)
        states, lowest = goal.states, np.full(len(group), np.inf)
        for _ in range(FLOOR_EVALUATIONS):
            fed = feeds | dict(zip(state_names(len(states)), states, strict=True))
            found = dict(zip(names, session.run(names, fed), strict=True))
            lowest = np.fmin(lowest, found[RESIDUAL])
            own = "value" if "value_0" in found else "next_state"
            states = [found[name] for name in state_names(len(states), own)]
        floors.append(float(lowest.max()))
    return max(floors)
