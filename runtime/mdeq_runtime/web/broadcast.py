"""From one thread to any number of coroutines: each item is made once and copied for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from mdeq_runtime.web.ring import Ring

__all__ = ["Broadcast"]


class Broadcast:
    """The newest items, which followers read at a pace of their own.

    A follower that is slow skips what is no longer kept; nobody waits for it.

    Args:
        items: those that there are for a follower who comes late or is slow.
        on_first: called, in the followers' thread, when somebody follows after nobody did.

    Attributes:
        followers: how many follow now.
    """

    def __init__(
        self, items: deque[bytes] | Ring, on_first: Callable[[], None] = lambda: None
    ) -> None:
        self.followers = 0
        self.on_first = on_first
        self.lock = threading.Lock()
        self.items = items
        self.number = 0  # of items that there were
        self.closed = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiting: set[asyncio.Future[None]] = set()  # of that loop only

    def publish(self, item: bytes) -> None:
        """Offer an item; from any thread."""
        with self.lock:
            self.items.append(item)
            self.number += 1
        self.wake()

    def forget(self) -> None:
        """Drop what is kept: it has become too old to be shown to anybody."""
        with self.lock:
            self.items.clear()

    def close(self) -> None:
        """Let all followers end; from any thread."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        loop = self.loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self.resolve)
            except RuntimeError:  # closed in between
                return

    def resolve(self) -> None:
        """Let whoever waits look again; in the loop's thread."""
        waiting, self.waiting = self.waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def join(self) -> None:
        """Begin to follow; in the loop's thread."""
        self.loop = asyncio.get_running_loop()
        self.followers += 1
        if self.followers == 1:
            self.on_first()

    def leave(self) -> None:
        """Follow no more."""
        self.followers -= 1

    def since(self, number: int) -> tuple[int, list[bytes]]:
        """The number of the newest item, and those after ``number`` that are still kept."""
        with self.lock:
            fresh = min(self.number - number, len(self.items))
            return self.number, list(self.items)[len(self.items) - fresh :]

    async def after(self, number: int) -> tuple[int, list[bytes]] | None:
        """Wait for items after ``number``; None once it is closed."""
        while not self.closed:
            found = self.since(number)
            if found[1]:
                return found
            future = asyncio.get_running_loop().create_future()
            self.waiting.add(future)
            try:
                await future
            finally:
                self.waiting.discard(future)
        return None
