"""How a source is doing, as a state that others may look at while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Picture", "State", "Status"]


class State(str, Enum):
    """What a source is doing.

    ``OK``: frames come. ``TIMEOUT``: nothing came for too long. ``EOS``: the stream has ended, or
    the other side closed it. ``ERROR``: it could not be opened, or failed. ``RECONNECTING``: it is
    being opened, for the first time or again.
    """

    OK = "ok"
    TIMEOUT = "timeout"
    EOS = "eos"
    ERROR = "error"
    RECONNECTING = "reconnecting"


class Picture(str, Enum):
    """What a live source's pictures look like: ``FROZEN`` are the same bytes again and again."""

    OK = "ok"
    FROZEN = "frozen"
    BLACK = "black"


@dataclass(frozen=True)
class Status:
    """The state of a source at one moment.

    Attributes:
        state: see ``State``.
        detail: what went wrong and what to do, in a sentence; "" while all is well. It holds no
            credentials.
        since: seconds of the monotonic clock at which ``state`` began.
        reconnects: how often the source was opened again and delivered.
        picture: see ``Picture``.
    """

    state: State = State.OK
    detail: str = ""
    since: float = 0.0
    reconnects: int = 0
    picture: Picture = Picture.OK
