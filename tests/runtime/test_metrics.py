"""What is counted of a run, and why frames start cold."""

from __future__ import annotations

import math
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted import MASK, result

from edge_mdeq.bundle import open_bundle
from mdeq_runtime import FixedIterations, Model, Result, SessionSettings
from mdeq_runtime.backends import Answer
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.metrics import WINDOW, Metrics, Snapshot
from mdeq_runtime.reasons import COLD_KINDS, ColdKind

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
