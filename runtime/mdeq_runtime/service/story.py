"""The events of a run beside its warnings: start, cold starts, stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mdeq_runtime.metrics import Summary
from mdeq_runtime.results import Result
from mdeq_runtime.service.logs import event

__all__ = ["tell_page", "tell_start", "tell_stop", "telling_resets"]

log = logging.getLogger(__name__)

EVERY_S = 1.0  # between two lines about cold starts of one kind
EXPECTED = ("first_frame", "off")  # cold starts that are no news


def tell_start(bundle: str, backend: str, source: str, outputs: list[str]) -> None:
    """All is open."""
    log.info(
        "%s on %s; source: %s", bundle, backend, source,
        extra=event("start", bundle=bundle, backend=backend, source=source, outputs=outputs),
    )  # fmt: skip


def tell_page(url: str) -> None:
    """Where the live page is; not with its token, which is for people and not for logs."""
    log.info("live page: %s", url, extra=event("live_page", url=url))


def telling_resets(clock: Callable[[], float] = time.monotonic) -> Callable[[Result], None]:
    """What tells of cold starts, a kind at most once a second; ``untold`` are those between."""
    told: dict[str, float] = {}
    untold: dict[str, int] = {}

    def tell(result: Result) -> None:
        kind = result.cold
        if result.warm or kind is None or kind in EXPECTED:
            return
        now = clock()
        if now - told.get(kind, -EVERY_S) < EVERY_S:
            untold[kind] = untold.get(kind, 0) + 1
            return
        told[kind] = now
        fields = event(
            "cold_start", kind=kind, frame=result.index, residual=result.residual,
            untold=untold.pop(kind, 0),
        )  # fmt: skip
        log.info("frame %d: %s", result.index, result.reason, extra=fields)

    return tell


def tell_stop(summary: Summary) -> None:
    """The run is over, and all outputs are closed."""
    why = "interrupted" if summary.interrupted else "ended"
    log.info(
        "%s after %d frames", why, summary.frames,
        extra=event(
            "stop", why=why, frames=summary.frames, dropped=summary.dropped,
            seconds=round(summary.seconds, 3), residual_mean=summary.residual_mean,
            peak_rss_bytes=summary.peak_rss_bytes,
        ),
    )  # fmt: skip
