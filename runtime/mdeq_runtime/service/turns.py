"""A lock for what must be on time, and for what may wait."""

from __future__ import annotations

import threading
from contextlib import suppress

__all__ = ["Aside", "Turns"]

GRACE_S = 0.004  # after one frame, until the next one that waits is there
PATIENCE = 3  # frames that go first, where they follow each other without a pause


class Turns:
    """Held, by ``with``, by those who must be on time: they go first."""

    def __init__(self) -> None:
        self.next = threading.Lock()  # held by the first one in the queue, who is not overtaken
        self.held = threading.RLock()
        # how many hold it or wait for it, and how many have, those that stand aside not counted
        self.wanted = self.passed = 0
        self.changed = threading.Condition()

    def __enter__(self) -> None:
        self.count(1)
        try:
            self.take()
        except BaseException:
            self.count(-1)
            raise

    def __exit__(self, *exc: object) -> None:
        self.held.release()
        self.passed += 1
        self.count(-1)

    def count(self, by: int) -> None:
        with self.changed:
            self.wanted += by
            self.changed.notify_all()

    def take(self) -> None:
        with self.next:
            try:
                self.held.acquire()
            except BaseException:  # Ctrl-C, before it was acquired or just after
                with suppress(RuntimeError):
                    self.held.release()
                raise

    def wait_for_a_gap(self) -> None:
        """Until nobody has wanted it for ``GRACE_S``, or ``PATIENCE`` times it was let go of."""
        with self.changed:
            enough = self.passed + PATIENCE
            while self.passed < enough:
                if self.wanted:
                    self.changed.wait()
                elif not self.changed.wait(GRACE_S):
                    return


class Aside:
    """The same lock for those who may wait: they take it, again and again, between the others."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def __enter__(self) -> None:
        self.turns.wait_for_a_gap()
        self.turns.take()

    def __exit__(self, *exc: object) -> None:
        self.turns.held.release()
