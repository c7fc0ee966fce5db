"""The newest items in one block of memory, which neither grows nor is broken up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

__all__ = ["Ring"]


class Ring:
    """A deque of bytes that forgets the oldest ones, of which there are too many or too large.

    Kept each by itself for minutes, among frames that come and go, small items end up where a frame
    was, and the next frame needs new memory.

    Args:
        keep: items at most.
        room: bytes at most, of all of them together.
    """

    def __init__(self, keep: int, room: int) -> None:
        self.block = bytearray(room)
        self.places: deque[tuple[int, int]] = deque(maxlen=keep)  # start and stop
        self.end = 0  # what starts from here on is of the lap before, and goes first

    def append(self, item: bytes) -> None:
        """Put an item behind the others.

        Raises:
            ValueError: it is larger than the block, or empty.
        """
        if not 0 < len(item) <= len(self.block):
            raise ValueError(f"an item of {len(item)} bytes, in room for {len(self.block)}")
        if self.end + len(item) > len(self.block):
            self.forget(self.end, len(self.block))
            self.end = 0
        stop = self.end + len(item)
        self.forget(self.end, stop)
        self.block[self.end : stop] = item
        self.places.append((self.end, stop))
        self.end = stop

    def forget(self, start: int, stop: int) -> None:
        """Let go of the oldest items, as far as they start in there."""
        while self.places and start <= self.places[0][0] < stop:
            self.places.popleft()

    def clear(self) -> None:
        """Let go of all items."""
        self.places.clear()
        self.end = 0

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[bytes]:
        return (bytes(self.block[start:stop]) for start, stop in self.places)
