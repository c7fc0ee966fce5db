"""Solvers by the names that recipes, manifests and the command line use."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.anderson import Anderson
from edge_mdeq.solvers.broyden import Broyden
from edge_mdeq.solvers.driver import Solver
from edge_mdeq.solvers.fixed_point import FixedPoint

__all__ = ["SOLVERS", "make_solver"]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "fixed_point": FixedPoint,
    "anderson": Anderson,
    "broyden": Broyden,
}


def make_solver(name: str, **settings: float) -> Solver:
    """A solver by name, with its settings.

    ``fixed_point`` takes ``tau``; ``anderson`` takes ``m``, ``beta`` and ``lam``; ``broyden`` takes
    ``m`` and ``line_search``.

    Raises:
        ConfigError: an unknown name (a near one is suggested), a setting it does not have, or a
            value out of range.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown solver {name!r}, known: {', '.join(SOLVERS)}{hint}")
    try:
        return SOLVERS[name](**settings)
    except TypeError as error:
        raise ConfigError(f"solver {name!r} does not take {settings}: {error}") from error
