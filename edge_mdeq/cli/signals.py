"""Ctrl-C, and what a service manager or a lost terminal sends: heard once, and never lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

__all__ = ["insist", "stop_by_signals"]

AGAIN_S = 0.01  # by then a callback is over


def stop_by_signals() -> None:
    """Let a service manager, or a lost terminal, end the work as Ctrl-C does: with whole files.

    The first signal counts; what follows it is ignored, so that an impatient user does not lose the
    video that is being finished. Called once there is something to lose: Python hears of signals
    only between calls of libraries, and a source may take its time to open.
    """
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)


def insist() -> None:
    """Raise a ``KeyboardInterrupt`` again that came where Python can only report it.

    Such as a callback of a weak reference, or ``__del__``: torch has thousands of them while it
    traces. The command would go on as if nobody had asked it to stop.
    """
    if not isinstance(sys.unraisablehook, RaiseAgain):
        sys.unraisablehook = RaiseAgain(sys.unraisablehook)


class RaiseAgain:
    """What Python calls with exceptions that it cannot raise; ``report`` gets all others."""

    def __init__(self, report: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self.report = report

    def __call__(self, lost: sys.UnraisableHookArgs) -> None:
        kind, main = lost.exc_type, threading.main_thread()
        if not issubclass(kind, KeyboardInterrupt) or threading.current_thread() is not main:
            self.report(lost)
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: object) -> None:
            signal.signal(signal.SIGINT, before)
            raise kind

        signal.signal(signal.SIGINT, stop)
        threading.Timer(AGAIN_S, signal.pthread_kill, (main.ident, signal.SIGINT)).start()
