"""Figures as Prometheus reads them."""

from __future__ import annotations

import sys

import pytest
from counted import result

from edge_mdeq.errors import MissingExtraError
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.prometheus import prometheus_registry, prometheus_text


def test_prometheus_reads_the_same_numbers_in_its_units() -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    metrics = Metrics()
    metrics.add(result(20.0, 4, 0.2, "first_frame"), write_ms=2.0)
    metrics.add(result(30.0, 2, 0.1), write_ms=4.0, dropped=7)
    samples = {
        (sample.name.removeprefix("edge_mdeq_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(prometheus_text(metrics))
        for sample in family.samples
    }
    now = metrics.snapshot()
    assert now.busy is not None
    for key, value in {
        ("frames_total",): 2,
        ("frames_dropped_total",): 7,
        ("cold_starts_total", "first_frame"): 1,
        ("stage_seconds_sum", "solve"): 0.050,
        ("stage_seconds_count", "solve"): 2,
        ("stage_seconds_sum", "write"): 0.006,
        ("busy_seconds_sum",): 0.058,
        ("busy_seconds", "0.9"): 1e-3 * now.busy.p90,
        ("iterations_sum",): 6,
        ("residual_sum",): 0.3,
        ("residual", "0.5"): 0.15,
    }.items():
        assert samples[key] == pytest.approx(value), key
    assert {key for key in samples if key[0] == "stage_seconds"} == {
        ("stage_seconds", quantile, stage)
        for quantile in ("0.5", "0.9", "0.99")
        for stage in ("read", "fit", "solve", "write")
    }
    assert all(key[0] != "device_memory_bytes" for key in samples)


def test_each_registry_is_its_own_and_follows_its_metrics() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    one, other = Metrics(), Metrics()
    registries = prometheus_registry(one), prometheus_registry(other)
    assert registries[0].get_sample_value("edge_mdeq_frames_total") == 0
    one.add(result())
    assert registries[0].get_sample_value("edge_mdeq_frames_total") == 1
    assert registries[1].get_sample_value("edge_mdeq_frames_total") == 0
    everyones = prometheus_client.generate_latest(prometheus_client.REGISTRY).decode()
    assert "edge_mdeq" not in everyones


def test_without_prometheus_client_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("prometheus_client", "prometheus_client.core"):
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (prometheus_text, prometheus_registry):
        with pytest.raises(MissingExtraError, match=r"edge-mdeq\[web\]"):
            ask(Metrics())
