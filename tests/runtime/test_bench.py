"""What a benchmark says: its statistics, what it measures, and on which cores."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from pathlib import Path

import numpy as np
import pytest

from edge_mdeq.errors import BundleError, ConfigError, SessionError, SourceError
from mdeq_runtime.bench import BenchSettings, benchmark
from mdeq_runtime.bench.machine import describe_machine, pinned
from mdeq_runtime.bench.pictures import load_frames, there_and_back
from mdeq_runtime.bench.statistics import ratio, summarise

SAMPLE = Path(__file__).parents[2] / "samples" / "bundles" / "camvid-nano.mdeq"


def by_hand(values: list[float], rank: float) -> float:
    """A percentile as textbooks interpolate it, between the two closest of n - 1 steps."""
    ordered = sorted(values)
    place = rank / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_those_of_the_textbook(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count).tolist()
    found = summarise(values, (0, 50, 90, 99, 100))
    for name, value in found.percentiles.items():
        assert value == pytest.approx(by_hand(values, float(name[1:])))
    assert found.median == pytest.approx(statistics.median(values))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.iqr == pytest.approx(by_hand(values, 75) - by_hand(values, 25))
    assert found.count == count


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    """Of lognormal times whose medians are as 3 to 2; 95% of 200 intervals, give or take."""
    rng, caught = np.random.default_rng(1), 0
    for _ in range(200):
        above, below = 3 * rng.lognormal(0, 0.2, 40), 2 * rng.lognormal(0, 0.2, 40)
        found = ratio(above, below)
        assert found.low <= found.value <= found.high
        caught += found.low <= 1.5 <= found.high
    assert 180 <= caught <= 199


def test_what_slows_a_whole_round_cancels() -> None:
    drift = np.random.default_rng(2).lognormal(0, 1.0, 30)
    found = ratio(2 * drift, drift)
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))


def test_a_wider_spread_has_a_wider_interval_and_more_rounds_a_narrower_one() -> None:
    rng = np.random.default_rng(3)

    def width(sigma: float, rounds: int) -> float:
        found = ratio(rng.lognormal(0, sigma, rounds), rng.lognormal(0, sigma, rounds))
        return found.high - found.low

    assert width(0.05, 50) < width(0.5, 50)
    assert width(0.3, 1000) < width(0.3, 20)


@pytest.mark.parametrize("rank", [-1, 101, math.nan])
def test_an_unknown_percentile_is_refused(rank: float) -> None:
    with pytest.raises(ConfigError, match="is no percentile; choose from 0 to 100"):
        BenchSettings(percentiles=[50, rank])


def test_nothing_and_unequal_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing was measured"):
        summarise([])
    with pytest.raises(ConfigError, match="not of the same rounds"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf])
def test_a_duration_that_makes_no_sense_is_refused(duration: float) -> None:
    with pytest.raises(ConfigError, match="must be positive and finite"):
        BenchSettings(duration=duration)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_are_gone_through_there_and_back(count: int) -> None:
    seen = [there_and_back(step, count) for step in range(4 * count)]
    assert set(seen) == set(range(count))
    assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(seen))


def test_the_pattern_has_the_models_size_and_moves() -> None:
    frames, said = load_frames(None, (48, 64))
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert not np.array_equal(frames[0], frames[-1])
    assert "48 x 64" in said


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_keeps_to_as_many_cores_as_threads_and_is_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert cores.threads == 1
        if cores.pinned:
            assert os.sched_getaffinity(0) == set(cores.pinned)
            assert len(cores.pinned) == 1
    assert os.sched_getaffinity(0) == before


def test_a_machine_is_described_by_its_processor_and_instructions(tmp_path: Path) -> None:
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("Features\t: fp asimd asimddp crc32\n")
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano\0")
    found = describe_machine(tmp_path)
    assert found["processor"] == "NVIDIA Jetson Orin Nano"
    assert found["instructions"] == ["NEON", "NEON dot product"]
    (tmp_path / "proc/cpuinfo").write_text("model name : A CPU\nflags : avx2 avx512_vnni fma\n")
    (tmp_path / "proc/device-tree/model").unlink()
    found = describe_machine(tmp_path)
    assert found["processor"] == "A CPU"
    assert found["instructions"] == ["AVX2", "FMA", "AVX-512 VNNI"]


def test_the_sample_bundle_is_measured_rung_by_rung() -> None:
    settings = BenchSettings(
        iterations=[1, 2], warmup=6, duration=0.01, threads=1, percentiles=[99, 50]
    )
    report = benchmark(SAMPLE, settings)
    assert [(row.start, row.evaluations) for row in report.rows] == [
        ("cold", 1), ("cold", 2), ("warm", 1), ("warm", 2),
    ]  # fmt: skip
    for row in report.rows:
        assert list(row.milliseconds) == ["p50", "p99"]
        assert 0 < row.milliseconds["p50"] <= row.milliseconds["p99"]
        assert row.fps == pytest.approx(1e3 / row.mean)
        assert row.frames >= report.rounds >= 3
        assert row.cpu_ms > 0
        if row.memory is not None:
            weights = (SAMPLE / "graphs/ort-cpu/weights-fp32.bin").stat().st_size
            assert weights < row.memory.above_base < row.memory.peak
            assert row.memory.resident <= row.memory.peak
    residual = {(row.start, row.evaluations): row.residual for row in report.rows}
    assert residual["warm", 1] < residual["cold", 1]  # as it was carried along
    assert residual["warm", 2] < residual["cold", 2]
    assert residual["cold", 2] < residual["cold", 1]
    assert report.threads == 1


def test_what_the_bundle_or_the_source_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no rung of 3 evaluations, only of 1, 2, 4, 8"):
        benchmark(SAMPLE, BenchSettings(iterations=[3], duration=0.01))
    with pytest.raises(SourceError):
        benchmark(SAMPLE, BenchSettings(source=str(tmp_path / "none.mp4"), duration=0.01))
    with pytest.raises(BundleError):
        benchmark(tmp_path, BenchSettings(duration=0.01))
