"""The thread that reloads when it is asked to, and tells how that went."""

from __future__ import annotations

import logging
import threading
import time

from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime.service.logs import event
from mdeq_runtime.service.notify import Notifier
from mdeq_runtime.service.reload import ReloadableSession

__all__ = ["Reloader"]

log = logging.getLogger(__name__)


class Reloader:
    """Waits for ``ask``, which may come from a signal handler.

    Args:
        session: whose bundle is opened again.
        notifier: told of each reload and its end.

    Attributes:
        done, failed: how many reloads there were of either kind.
        busy: whether one is under way.
    """

    def __init__(self, session: ReloadableSession, notifier: Notifier | None = None) -> None:
        self.session, self.notifier = session, notifier or Notifier()
        self.done = self.failed = 0
        self.busy = False
        self.asked = threading.Event()
        self.thread = threading.Thread(target=self.run, name="reload", daemon=True)
        self.thread.start()

    def ask(self) -> None:
        """Reload now, or once more after a reload that is under way."""
        self.asked.set()

    def run(self) -> None:
        """For as long as the process lasts."""
        while True:
            self.asked.wait()
            self.asked.clear()
            self.busy = True
            self.notifier.reloading()
            try:
                self.reload()
            finally:
                self.notifier.ready()
                self.busy = False

    def reload(self) -> None:
        """Once; a failure is a warning, since frames go on as before."""
        started = time.monotonic()
        try:
            self.session.reload()
        except Exception as error:  # of ours, or of a library that cannot read the new files
            self.failed += 1
            text = str(error) if isinstance(error, EdgeMdeqError) else repr(error)
            log.warning(
                "not reloaded, the present bundle stays: %s",
                text,
                extra=event("reload", done=False),
            )
            return
        self.done += 1
        name, place = self.session.manifest.name, self.session.place
        seconds = time.monotonic() - started
        log.info(
            "reloaded: %s from %s, in %.1f s", name, place, seconds,
            extra=event("reload", done=True, bundle=name, place=str(place), seconds=seconds),
        )  # fmt: skip
