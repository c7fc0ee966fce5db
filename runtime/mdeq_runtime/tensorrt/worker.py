"""One thread that does what is handed to it, in order: CUDA's contexts belong to threads."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from edge_mdeq.errors import SessionError

__all__ = ["Worker"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Future[Any]"]


class Worker:
    """Runs functions in a thread of its own, which starts at once and ends with ``stop``.

    The thread is a daemon: those of ``concurrent.futures`` are joined before what is registered
    with ``atexit`` gets to free the device's memory in them.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.lock = threading.RLock()  # a finaliser may come in between
        self.stopped = False
        self.thread = threading.Thread(target=work, args=(self.jobs,), name=name, daemon=True)
        self.thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the worker's thread; what it raises is raised here.

        Raises:
            SessionError: the worker was stopped.
        """
        if threading.current_thread() is self.thread:
            return function()
        future = self.post(function)
        if future is None:
            raise SessionError("this model is closed; open the bundle again")
        return future.result()

    def post(self, function: Callable[[], T]) -> Future[T] | None:
        """Do it without waiting; None if the worker was stopped."""
        future: Future[T] = Future()
        with self.lock:
            if self.stopped:
                return None
            self.jobs.put((function, future))
        return future

    def stop(self) -> None:
        """Finish what was handed in so far, and end the thread; stopping again does nothing."""
        with self.lock:
            self.stopped = True
        self.jobs.put(None)
        if threading.current_thread() is not self.thread:
            self.thread.join()


def work(jobs: SimpleQueue[Job | None]) -> None:
    """What the thread does; it knows the queue only, so that its worker can be forgotten."""
    while (job := jobs.get()) is not None:
        function, future = job
        try:
            future.set_result(function())
        except BaseException as error:  # whatever it is, it belongs to the caller
            traceback.clear_frames(error.__traceback__)  # but not what it holds of the device
            future.set_exception(error)
        del job, function, future  # whose memory of the device is not to wait for the next job
