"""What ``versus.py`` measures in turn: this project's rungs, and what one could run instead.

A module each for a kind of contender. ``lineup`` lists them without importing anything heavy, so
that a process that measures the memory of one holds nothing of the others.
"""

from __future__ import annotations

from contenders.base import AbsentError, Case, Contender
from contenders.networks import networks
from contenders.ours import ours
from contenders.research import research
from contenders.runtimes import runtimes

__all__ = ["AbsentError", "Case", "Contender", "lineup"]


def lineup(case: Case) -> list[Contender]:
    """Every contender on a model; some may prove not to be here when they are prepared."""
    return [*ours(case), *research(case), *runtimes(case), *networks(case)]
