"""Reading the URIs of sources and targets, and helping with the ones that are wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "split_scheme"]


def split_scheme(uri: str) -> tuple[str, str]:
    """("v4l2", "/dev/video0") for ``v4l2:///dev/video0``; ("", uri) for a plain path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return (match[1].lower(), uri[match.end() :]) if match else ("", uri)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'v4l2'?"``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
