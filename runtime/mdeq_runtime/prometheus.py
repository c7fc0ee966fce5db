"""Metrics as Prometheus reads them: in its base units, from a registry of their own.

Needs the package prometheus-client, which the extra ``web`` brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, cast

from edge_mdeq.errors import require
from mdeq_runtime.metrics import Metrics, Percentiles, Snapshot
from mdeq_runtime.sources.status import Picture, State

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["prometheus_registry", "prometheus_text"]

PREFIX = "edge_mdeq_"


def prometheus_registry(metrics: Metrics) -> CollectorRegistry:
    """A registry that takes a snapshot whenever it is read; for ``prometheus_client``'s servers.

    Raises:
        MissingExtraError: prometheus-client is not installed.
    """
    core = require("prometheus_client.core", "web", "Prometheus metrics")
    registry: CollectorRegistry = core.CollectorRegistry()
    registry.register(cast("Collector", Exporter(metrics, core)))
    return registry


def prometheus_text(metrics: Metrics) -> str:
    """The metrics in Prometheus's text format, of the type ``CONTENT_TYPE_LATEST``.

    Raises:
        MissingExtraError: prometheus-client is not installed.
    """
    client = require("prometheus_client", "web", "Prometheus metrics")
    text: bytes = client.generate_latest(prometheus_registry(metrics))
    return text.decode()


class Exporter:
    """What a registry asks for its metrics; ``core`` is ``prometheus_client.core``."""

    def __init__(self, metrics: Metrics, core: ModuleType) -> None:
        self.metrics, self.core = metrics, core

    def collect(self) -> Iterator[Metric]:
        """One family after the other, all of one moment."""
        now = self.metrics.snapshot()
        yield from self.counts(now)
        yield from self.distributions(now)
        yield from self.gauges(now)

    def counts(self, now: Snapshot) -> Iterator[Metric]:
        counter = self.core.CounterMetricFamily
        yield counter(f"{PREFIX}frames", "Frames answered.", value=now.frames)
        yield counter(
            f"{PREFIX}frames_dropped", "Frames that nobody had time for.", value=now.dropped
        )
        cold = counter(
            f"{PREFIX}cold_starts", "Frames solved from zero, by the reason.", labels=["reason"]
        )
        for kind, count in now.cold.items():
            cold.add_metric([kind], count)
        yield cold
        if now.source is not None:
            yield counter(
                f"{PREFIX}source_reconnects",
                "How often the source came back.",
                value=now.source.reconnects,
            )

    def distributions(self, now: Snapshot) -> Iterator[Metric]:
        stages = self.core.SummaryMetricFamily(
            f"{PREFIX}stage_seconds", "Time of each stage of a frame.", labels=["stage"]
        )
        for stage, found in now.stages.items():
            fill(stages, found, {"stage": stage}, 1e-3)
        yield stages
        for name, text, scale, quantity in (
            ("busy_seconds", "Time spent on a frame, without the wait for it.", 1e-3, now.busy),
            ("age_seconds", "From capture to answer, of live sources.", 1e-3, now.age),
            ("iterations", "Evaluations of f by frame.", 1.0, now.iterations),
            ("residual", "Relative residual by frame, where finite.", 1.0, now.residual),
        ):
            family = self.core.SummaryMetricFamily(PREFIX + name, text)
            if quantity is not None:
                fill(family, quantity, {}, scale)
            yield family

    def gauges(self, now: Snapshot) -> Iterator[Metric]:
        for name, text, value in (
            ("uptime_seconds", "How long metrics have been gathered.", now.seconds),
            ("resident_memory_bytes", "Resident memory of the process.", now.rss_bytes),
            ("resident_memory_peak_bytes", "Its peak.", now.peak_rss_bytes),
            ("device_memory_bytes", "Memory taken on the device.", now.device_bytes),
        ):
            if value is not None:
                yield self.core.GaugeMetricFamily(PREFIX + name, text, value=value)
        if now.source is not None:
            yield self.one_of("source_state", "What the source is doing.", now.source.state)
            yield self.one_of("source_picture", "What its pictures are.", now.source.picture)

    def one_of(self, name: str, text: str, now: State | Picture) -> Metric:
        """One sample per state that there is: 1 for the present one."""
        family = self.core.GaugeMetricFamily(PREFIX + name, text, labels=["state"])
        for each in type(now):
            family.add_metric([each.value], float(each is now))
        return family  # type: ignore[no-any-return]


def fill(family: Metric, found: Percentiles, labels: dict[str, str], scale: float) -> None:
    """Add quantiles, count and sum; the quantiles are those of the last 10 000 frames."""
    for quantile, value in (("0.5", found.p50), ("0.9", found.p90), ("0.99", found.p99)):
        family.add_sample(family.name, {**labels, "quantile": quantile}, scale * value)
    family.add_sample(f"{family.name}_count", labels, found.count)
    family.add_sample(f"{family.name}_sum", labels, scale * found.total)
