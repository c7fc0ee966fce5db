from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mdeq_runtime.sinks.metrics as metrics_module
from edge_mdeq.bundle import open_bundle
from edge_mdeq.cli.showing import progress_bar
from edge_mdeq.errors import ConfigError, MissingExtraError, SinkError
from mdeq_runtime import FixedIterations, Frame, Model, Result, SessionSettings
from mdeq_runtime.backends import Answer
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.metrics import WINDOW, Metrics, Snapshot
from mdeq_runtime.pipeline import run
from mdeq_runtime.prometheus import prometheus_registry, prometheus_text
from mdeq_runtime.reasons import COLD_KINDS, ColdKind
from mdeq_runtime.sinks.metrics import MetricsSink
from mdeq_runtime.sources.base import Source

MASK = np.zeros((2, 2), np.uint8)
FRAME = Frame(np.zeros((2, 2, 3), np.uint8), 0, 0.0)


def result(
    solve: float = 3.0, iterations: int = 2, residual: float = 0.1, cold: ColdKind | None = None
) -> Result:
    times = {"read": 40.0, "fit": 1.0, "solve": solve}
    reason = f"reset: {cold}" if cold else ""
    return Result(
        MASK, None, iterations, residual, True, cold is None, reason, times, cold=cold
    )  # fmt: skip


# What is counted


def test_a_snapshot_is_what_numpy_makes_of_the_same_frames() -> None:
    rng = np.random.default_rng(0)
    solve = rng.gamma(2.0, 5.0, 500)
    counts = rng.integers(1, 9, 500)
    residuals = rng.uniform(0.0, 1.0, 500)
    metrics = Metrics(clock=iter([10.0, 35.0]).__next__, wall=lambda: 1e9)
    for ms, count, residual in zip(solve, counts, residuals, strict=True):
        cold: ColdKind | None = "scene_cut" if residual > 0.9 else None
        metrics.add(result(ms, int(count), residual, cold), write_ms=2.0)
    found = metrics.snapshot()
    assert (found.time, found.seconds, found.frames, found.fps) == (1e9, 25.0, 500, 20.0)
    for values, quantity in (
        (solve, found.stages["solve"]),
        (solve + 1.0 + 2.0, found.busy),
        (counts, found.iterations),
        (residuals, found.residual),
    ):
        assert quantity is not None
        assert [quantity.p50, quantity.p90, quantity.p99] == pytest.approx(
            np.percentile(values, (50, 90, 99)).tolist()
        )
        assert quantity.count == 500
        assert quantity.total == pytest.approx(values.sum())
    assert set(found.stages) == {"read", "fit", "solve", "write"}
    assert found.mean_iterations == pytest.approx(counts.mean())
    assert found.residual_mean == pytest.approx(residuals.mean())
    assert found.residual_max == residuals.max()
    cuts = int((residuals > 0.9).sum())
    assert found.cold == {"scene_cut": cuts}
    assert found.warm_share == pytest.approx(1 - cuts / 500)


def test_percentiles_look_back_on_the_last_frames_and_totals_on_all() -> None:
    metrics = Metrics()
    for index in range(2 * WINDOW + 7):
        metrics.add(result(1.0 if index < WINDOW else 5.0))
    found = metrics.snapshot().stages["solve"]
    assert (found.p50, found.p99) == (5.0, 5.0)
    assert found.count == 2 * WINDOW + 7
    assert found.total == WINDOW + 5.0 * (WINDOW + 7)


def test_memory_does_not_grow_with_the_frames() -> None:
    metrics = Metrics()
    answer = result()
    for _ in range(WINDOW + 1):
        metrics.add(answer)
    tracemalloc.start()
    for _ in range(WINDOW):
        metrics.add(answer)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 2_000


def test_a_snapshot_takes_no_memory_that_grows_with_its_window() -> None:
    metrics = Metrics()
    answer = result()
    for _ in range(WINDOW):
        metrics.add(answer)
    tracemalloc.start()
    metrics.snapshot()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * WINDOW / 2, "a copy of one ring has 80 kB"


@pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only")
def test_the_pages_of_its_rings_are_there_from_the_first_frame_on() -> None:
    metrics = Metrics()
    answer = result()
    metrics.add(answer)
    metrics.snapshot()
    before = resident_bytes()
    for _ in range(WINDOW):
        metrics.add(answer)
    metrics.snapshot()
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before < 250_000, "a ring has 160 kB, and there are seven"


def test_a_residual_that_is_not_finite_is_the_largest_and_in_no_mean() -> None:
    metrics = Metrics()
    for residual in (0.1, math.nan, 0.3):
        metrics.add(result(residual=residual))
    found = metrics.snapshot()
    assert found.residual_max == math.inf
    assert found.residual_mean == pytest.approx(0.2)
    assert found.residual is not None
    assert found.residual.count == 2


def test_nothing_counted_has_no_means() -> None:
    found = Metrics().snapshot()
    assert (found.frames, found.dropped, found.stages, found.cold) == (0, 0, {}, {})
    assert found.busy is found.iterations is found.residual is None
    assert found.mean_iterations is found.warm_share is found.residual_max is None


def test_a_cold_start_that_nobody_explained_is_other() -> None:
    metrics = Metrics()
    metrics.add(Result(MASK, None, 1, 0.1, True, False, "whatever 17"))
    metrics.add(Result(MASK, None, 1, 0.1, True, False, "whatever 18"))
    assert metrics.snapshot().cold == {"other": 2}


def test_dropped_frames_are_added_up() -> None:
    metrics = Metrics()
    metrics.add(result(), dropped=3)
    metrics.add(result())
    metrics.drop(2)
    assert metrics.snapshot().dropped == 5


def test_device_memory_is_asked_of_backends_that_report_it(segmenter_bundle: Path) -> None:
    class OnDevice(OrtCpuBackend):
        def device_bytes(self) -> int:
            return 123 << 20

    bundle = open_bundle(segmenter_bundle)
    assert Metrics(OrtCpuBackend(bundle)).snapshot().device_bytes is None
    assert Metrics(OnDevice(bundle)).snapshot().device_bytes == 123 << 20


def test_snapshots_are_whole_while_another_thread_counts() -> None:
    metrics = Metrics()
    done = threading.Event()

    def feed() -> None:
        for _ in range(5000):
            metrics.add(result(2.0, 4), write_ms=1.0, dropped=1)
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    seen: list[Snapshot] = []
    while not done.is_set():
        seen.append(metrics.snapshot())
    thread.join()
    seen.append(metrics.snapshot())
    assert seen[-1].frames == 5000
    for found in seen:
        assert found.dropped == found.frames
        if found.frames:
            assert found.iterations is not None
            assert found.iterations.total == 4 * found.frames
            assert {stage.count for stage in found.stages.values()} == {found.frames}


# Why frames start cold


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_session_names_the_kind_of_each_cold_start(
    segmenter_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(settings: SessionSettings, *frames: np.ndarray[Any, Any]) -> list[ColdKind | None]:
        with model.session(settings) as session:
            return [session(frame).cold for frame in frames]

    policy = FixedIterations(2, cold=4)
    calm = SessionSettings(policy, restart_above=1e9, reset_on_cut=False)
    small = picture(0, (48, 80))
    dark, bright = np.zeros((64, 96, 3), np.uint8), np.full((64, 96, 3), 250, np.uint8)
    with Model(segmenter_bundle) as model:
        assert kinds(calm, dark, dark, small) == ["first_frame", None, "frame_size"]
        assert kinds(SessionSettings(policy, carry=False), dark, dark) == ["off", "off"]
        jumpy = SessionSettings(policy, restart_above=1e9)
        assert kinds(jumpy, dark, dark, bright) == ["first_frame", None, "scene_cut"]
        strict = SessionSettings(policy, restart_above=1e-9, reset_on_cut=False)
        assert kinds(strict, dark, bright) == ["first_frame", "residual"]
        with model.session(calm) as session:
            session(dark)
            session.reset("scene cut at 17:03")
            answer = session(dark)
            assert (answer.reason, answer.cold) == ("reset: scene cut at 17:03", "requested")
            ordinary = model.backend.run
            broken = [True]

            def once(*arguments: Any) -> Answer:
                found = ordinary(*arguments)
                return Answer(found.output, None, math.nan) if broken and broken.pop() else found

            monkeypatch.setattr(model.backend, "run", once)
            assert session(dark).cold == "non_finite"


def test_kinds_are_few_and_plain_words() -> None:
    assert len(set(COLD_KINDS)) == len(COLD_KINDS) == 11
    assert all(kind.isidentifier() and kind.islower() for kind in COLD_KINDS)


# As JSON


def test_a_line_is_one_json_object_with_null_for_what_is_not_finite() -> None:
    metrics = Metrics(wall=lambda: 1.5e9)
    metrics.add(result(residual=math.inf, cold="residual"), write_ms=0.25)
    line = metrics.snapshot().to_json_line()
    assert "\n" not in line
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert entry["residual_max"] is None
    assert entry["cold"] == {"residual": 1}
    assert entry["time"] == 1.5e9
    assert entry["stages"]["write"] == {
        "p50": 0.25, "p90": 0.25, "p99": 0.25, "count": 1, "total": 0.25,
    }  # fmt: skip
    assert set(entry) == set(Snapshot.__dataclass_fields__)


# As a file


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_every_so_often_and_one_at_the_end(tmp_path: Path) -> None:
    path, metrics, clock = tmp_path / "m.jsonl", Metrics(), Clock()
    with MetricsSink(path, metrics, 10.0, clock) as sink:
        for second in range(1, 26):
            clock.now = float(second)
            assert sink.write(FRAME, result())
            metrics.add(result())
        assert [entry["frames"] for entry in lines(path)] == [9, 19]
    assert [entry["frames"] for entry in lines(path)] == [9, 19, 25]
    sink.close()
    assert len(lines(path)) == 3


def test_lines_are_appended_even_after_one_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"frames": 1}\n{"fra')
    with MetricsSink(path, Metrics()) as sink:
        sink.write(FRAME, result())
    first, torn, mine = path.read_text().splitlines()
    assert (first, torn) == ('{"frames": 1}', '{"fra')
    assert json.loads(mine)["frames"] == 0


def test_a_full_disk_costs_a_line_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, metrics, clock = tmp_path / "m.jsonl", Metrics(), Clock()
    sink = MetricsSink(path, metrics, 1.0, clock)

    def write(second: float) -> None:
        clock.now = second
        assert sink.write(FRAME, result())

    write(1.0)
    whole = path.read_text()
    write_all = os.write
    with monkeypatch.context() as full:
        full.setattr(metrics_module.os, "write", lambda handle, data: write_all(handle, data[:9]))
        write(2.0)
        write(3.0)
    assert path.read_text() == whole
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the disk is full" in caplog.text
    write(4.0)
    sink.close()
    assert len(lines(path)) == 3


def test_several_writers_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"

    def work() -> None:
        clock = Clock()
        sink = MetricsSink(path, Metrics(), 1.0, clock)
        for second in range(1, 51):
            clock.now = float(second)
            sink.write(FRAME, result())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(path)) == 200


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="is a folder"):
        MetricsSink(tmp_path, Metrics())
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="must be positive"):
            MetricsSink(tmp_path / "m.jsonl", Metrics(), wrong)


# In a run


class Clip(Source):
    """So many frames from a file that must not be touched."""

    def __init__(self, path: Path, count: int) -> None:
        self.files = (path,)
        self.count, self.index = count, 0
        self.live, self.fps, self.size, self.description = False, 10.0, (2, 2), f"clip {path}"

    def read(self) -> Frame | None:
        if self.index == self.count:
            return None
        self.index += 1
        return Frame(np.zeros((16, 16, 3), np.uint8), self.index - 1, 0.0)

    def close(self) -> None:
        pass


def answer(frame: Frame) -> Result:
    return result(cold=None if frame.index else "first_frame")


def test_a_run_ends_with_its_last_snapshot(tmp_path: Path) -> None:
    path, metrics = tmp_path / "m.jsonl", Metrics()
    summary = run(answer, Clip(tmp_path / "clip", 5), [MetricsSink(path, metrics)], metrics=metrics)
    (last,) = lines(path)
    assert last["frames"] == summary.frames == 5
    assert last["cold"] == summary.cold == {"first_frame": 1}
    assert last["stages"].keys() == {"read", "fit", "solve", "write"}
    assert summary.busy is not None
    worked = [stage.total for name, stage in summary.stages.items() if name != "read"]
    assert summary.busy.total == pytest.approx(sum(worked))


def test_metrics_never_go_into_the_source_or_another_output(tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    clip.write_bytes(b"precious")
    metrics = Metrics()
    with pytest.raises(SinkError, match="is the source itself"):
        run(answer, Clip(clip, 5), [MetricsSink(clip, metrics)], metrics=metrics)
    assert clip.read_bytes() == b"precious"
    twice = [MetricsSink(tmp_path / "m.jsonl", metrics) for _ in range(2)]
    with pytest.raises(SinkError, match="given twice"):
        run(answer, Clip(clip, 5), twice, metrics=metrics)
    assert not (tmp_path / "m.jsonl").exists()


# As Prometheus reads it


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


# What the command shows


@pytest.mark.parametrize("stages", [("fit", "solve"), ("fit", "inject", "advance", "readout")])
def test_the_progress_line_knows_every_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: tuple[str, ...]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    times = {"read": 500.0, **dict.fromkeys(stages, 10.0)}
    with progress_bar(Clip(tmp_path, 1), quiet=False) as show:
        assert show is not None
        show(Result(MASK, None, 2, 0.1, True, True, "", times))
    assert f"{10 * len(stages)} ms" in terminal.getvalue()
