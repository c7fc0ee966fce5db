"""``edge-mdeq run`` as a service: signals, the service manager, reloading and logs."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import BUSY, fail_by

if TYPE_CHECKING:
    from mdeq_runtime import Model, Result, Session
    from mdeq_runtime.budget import MemoryReport
    from mdeq_runtime.metrics import Metrics
    from mdeq_runtime.service.reload import ReloadableSession

__all__ = ["LOG_FORMAT", "RELOAD_ON_HUP", "Serving", "prepare"]

RELOAD_ON_HUP = typer.Option(
    False,
    "--reload-on-hup",
    help="SIGHUP opens the bundle again, as always under a service manager (NOTIFY_SOCKET), "
    "instead of ending the run as a lost terminal does.",
)
LOG_FORMAT = typer.Option(
    "auto",
    "--log-format",
    help="Of what is said on stderr: plain, json (an object a line), or auto: plain, with "
    "priorities where journald reads.",
)


def prepare(log_format: str) -> bool:
    """Set up logs, and let only our own messages through; whether they are JSON.

    OpenCV and FFmpeg read their variables from the environment, before anything is opened; set
    otherwise they bring the rest back.

    Raises:
        ConfigError: an unknown format.
    """
    from mdeq_runtime.service.logs import event, set_up

    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    in_json = set_up(log_format)
    if in_json:

        def tell(message: str, kind: str) -> None:
            level = logging.ERROR if kind == "error" else logging.INFO
            logging.getLogger("mdeq_runtime.service").log(level, "%s", message, extra=event(kind))

        fail_by(tell)
    return in_json


class Serving:
    """What goes on beside a run.

    Args:
        metrics: of the run.
        reloads: whether SIGHUP reloads, though there is no service manager.

    Attributes:
        heartbeat: what the service manager hears.
    """

    def __init__(self, metrics: Metrics, reloads: bool) -> None:
        from mdeq_runtime.service.heartbeat import Heartbeat
        from mdeq_runtime.service.notify import open_notifier
        from mdeq_runtime.service.story import telling_resets

        self.notifier = open_notifier()
        self.metrics, self.reloads = metrics, reloads or bool(self.notifier)
        self.heartbeat = Heartbeat(self.notifier, metrics)
        self.resets = telling_resets()
        self.reloadable: ReloadableSession | None = None

    def session_of(self, model: Model, bundle: Path) -> Session | ReloadableSession:
        """The session that answers frames; one that can reload closes the model as well."""
        if not self.reloads:
            return model.session()
        from mdeq_runtime.service.reload import ReloadableSession

        self.reloadable = ReloadableSession(bundle, model, self.follow)
        return self.reloadable

    def follow(self, model: Model | None) -> None:
        """Count the device memory of the model that has taken over."""
        self.metrics.use(None if model is None else model.backend)

    def memory(self, model: Model) -> MemoryReport:
        """Of the model that answers now; ``model``: the first one."""
        return (model if self.reloadable is None else self.reloadable.model).memory()

    def on_result(self, seen: Callable[[Result], None] | None) -> Callable[[Result], None]:
        """What the pipeline calls after the outputs."""

        def told(result: Result) -> None:
            self.heartbeat.answered(result)
            self.resets(result)
            if seen is not None:
                seen(result)

        return told

    @contextmanager
    def begin(self) -> Iterator[None]:
        """All is open: heed signals, and tell the service manager."""
        reload = None
        if self.reloadable is not None:
            from mdeq_runtime.service.reloader import Reloader

            reloader = Reloader(self.reloadable, self.notifier)
            BUSY.append(lambda: reloader.busy)
            reload = reloader.ask
        self.heed(reload)
        self.heartbeat.begin()
        with self.heartbeat:
            yield

    def heed(self, reload: Callable[[], None] | None) -> None:
        """End the run in order, by SIGTERM within two seconds; SIGHUP ends it too, or reloads.

        The first signal that ends it counts, so that an impatient user does not lose the video that
        is being finished. Called once there is something to lose: Python hears of signals only
        between calls of libraries, and a source may take its time to open.
        """
        from mdeq_runtime.pipeline import Terminated

        def stop(number: int, frame: object) -> None:
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)
            self.heartbeat.stop()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and reload is not None:
                signal.signal(number, lambda number, frame: reload())
            elif signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, stop)
