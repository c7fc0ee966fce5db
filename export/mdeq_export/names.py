"""Names that a user types, checked against those that there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from edge_mdeq.errors import ConfigError

__all__ = ["check_names", "near_names"]

IN_FULL = {"trt": "tensorrt", "onnxruntime": "ort"}  # what people call them, and what we do
SHORTEST = 2  # letters and digits that say anything
ALIKE = 0.6  # of difflib's ratio, from which on a name is worth suggesting


def check_names(kind: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse what is not known, all of it at once.

    Args:
        kind: of thing, in a word, for the message.
        given: names as they were typed.
        known: names as they are.

    Raises:
        ConfigError: with the near names of each that is unknown.
    """
    wrong = [repr(name) + hint(near_names(name, known)) for name in given if name not in known]
    if wrong:
        raise ConfigError(f"unknown {kind} {', '.join(wrong)}; known: {', '.join(known)}")


def hint(near: list[str]) -> str:
    """A question for behind a name."""
    if not near:
        return ""
    *others, last = (repr(name) for name in near)
    return f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)"


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` that may have been meant: the same but for spelling, else all of which
    ``name`` is a part ("trt": every TensorRT) or that are a part of it ("tensorrt-10.3"), else the
    ones most like it.
    """
    plain = {each: simple(each) for each in known}
    typed = simple(name)
    if len(typed) < SHORTEST:
        return []
    ratios = {
        each: difflib.SequenceMatcher(None, typed, other).ratio() for each, other in plain.items()
    }
    best = max(ALIKE, *ratios.values())
    groups = (
        [each for each, other in plain.items() if other == typed],
        [each for each, other in plain.items() if typed in other],
        [each for each, other in plain.items() if other in typed],
        [each for each, ratio in ratios.items() if ratio == best],
    )
    return next((group for group in groups if group), [])


def simple(name: str) -> str:
    """Lower-case letters and digits alone, abbreviations written out."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    for short, full in IN_FULL.items():
        bare = re.sub(f"^{short}", full, bare)
    return bare
