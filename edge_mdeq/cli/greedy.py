"""Options that take several values after one name: ``--iterations 1 2 4 8``.

Typer wants ``--iterations 1 --iterations 2``; users of the field's tools write them in a row.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spread"]


def spread(args: Sequence[str], greedy: frozenset[str]) -> list[str]:
    """Repeat a greedy option's name before each further number: ``-n 1 2`` -> ``-n 1 -n 2``."""
    result: list[str] = []
    current, values = "", 0
    for arg in args:
        if arg in greedy:
            current, values = arg, 0
        elif current and arg.isdigit():
            if values:
                result.append(current)
            values += 1
        else:
            current = ""
        result.append(arg)
    return result
