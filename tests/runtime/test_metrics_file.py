"""Figures as JSON, in a file while frames are answered, and at the end of a run."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted import FRAME, MASK, result

import mdeq_runtime.sinks.metrics as metrics_module
from edge_mdeq.cli.showing import progress_bar
from edge_mdeq.errors import ConfigError, SinkError
from mdeq_runtime import Frame, Result
from mdeq_runtime.metrics import Metrics, Snapshot
from mdeq_runtime.pipeline import run
from mdeq_runtime.sinks.metrics import MetricsSink
from mdeq_runtime.sources.base import Source

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
