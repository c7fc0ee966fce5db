"""Reading the URIs of sources and targets, hiding their secrets, and helping with typos."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "redact", "split_scheme"]

SECRETS = (
    r"(?:pass(?:w(?:or)?d|phrase)?|pwd?|secret|token|key|api_?key|auth|sig(?:nature)?|user-pw)"
)
# up to the last @: passwords hold / and @ in defiance of the standard, and blanks (but " ! " stands
# between two elements of a pipeline, and digits behind the colon are a port)
USERINFO = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://)(?:\S*@|[^\n/@:\"']*:(?!\d+(?:/|$))(?:(?! ! )[^\n\"'])*@)"
)
QUERY = re.compile(rf"(?i)\b([a-z_-]*{SECRETS}=)(\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^&\s#]+)")


def redact(text: str) -> str:
    """``text`` without the user, the password and the tokens of any URI or pipeline in it.

    >>> redact("rtsp://joe:secret@gate/stream?token=123")
    'rtsp://***@gate/stream?token=***'
    """
    return QUERY.sub(r"\1***", USERINFO.sub(r"\1***@", text))


def split_scheme(uri: str) -> tuple[str, str]:
    """("v4l2", "/dev/video0") for ``v4l2:///dev/video0``; ("", uri) for a plain path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return (match[1].lower(), uri[match.end() :]) if match else ("", uri)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'v4l2'?"``, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
