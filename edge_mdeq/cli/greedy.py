"""Options that take several values after one name: ``--iterations 1 2 4 8``, ``--target a b``.

Typer wants ``--iterations 1 --iterations 2``; users of the field's tools write them in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["spread"]


def spread(args: Sequence[str], greedy: Mapping[str, Callable[[str], bool]]) -> list[str]:
    """Repeat a greedy option's name before each further value: ``-n 1 2`` -> ``-n 1 -n 2``.

    Args:
        args: of the command line.
        greedy: by option, whether an argument is a further value; no other that may follow is.
    """
    result: list[str] = []
    current, values = "", 0
    for arg in args:
        if arg in greedy:
            current, values = arg, 0
        elif current and greedy[current](arg):
            if values:
                result.append(current)
            values += 1
        else:
            current = ""
        result.append(arg)
    return result
