"""A disk that is full, media that cannot be written, a user without a home, a clock that jumps."""

from __future__ import annotations

import ast
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from artefacts import ARTEFACTS

from edge_mdeq.errors import BundleError, SinkError, WeightsError
from mdeq_runtime import Model
from mdeq_runtime.backends.engine_cache import engine_roots
from mdeq_runtime.device_key import key_path

ROOT = Path(__file__).parents[2]
SIZE = 80 * 2**20  # bytes of the small disk; some writers leave 64 MB to others
FRAME = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    return filler


REFUSALS: dict[str, type[Exception] | None] = {
    "bundle": BundleError,
    "bundle-aside": BundleError,
    "weights": WeightsError,
    "checkpoint": WeightsError,
    "video": SinkError,
    "plain-video": SinkError,
    "masks": SinkError,
    "newest": SinkError,
    "hard-frames": None,  # a warning: a run does not end for it
    "graph-cache": None,
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_full_disk_leaves_the_old_one_and_nothing_half_written(name: str, disk: Path) -> None:
    artefact, refusal, place = ARTEFACTS[name], REFUSALS[name], disk / "place"
    artefact.load()
    place.mkdir()
    artefact.write(place, "old")
    before = set(place.rglob("*"))
    filler = fill(disk)
    if refusal is not None:
        with pytest.raises(refusal, match=r"space|room|disk is full|intact"):
            artefact.write(place, "new")
    else:
        try:
            artefact.write(place, "new")
        except AssertionError:
            assert name == "graph-cache"
    assert artefact.read(place) == "old"
    assert not [path for path in place.rglob(".*") if path not in before]
    filler.unlink()
    artefact.write(place, "new")
    assert artefact.read(place) == "new"


def test_a_bundle_runs_from_media_that_cannot_be_written(
    segmenter_bundle: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = disk / "tiny.mdeq"
    subprocess.run(["cp", "-r", str(segmenter_bundle), str(bundle)], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (bundle / "x").touch()
    with caplog.at_level(logging.WARNING), Model(bundle, device="cpu", cache=disk / "cache") as m:
        found = m(FRAME)
    assert f"{disk / 'cache'} cannot be used (" in caplog.text
    with Model(segmenter_bundle, device="cpu") as model:
        np.testing.assert_array_equal(found.output, model(FRAME).output)


HOMELESS = """
import os, pwd, sys
def unknown(number):
    raise KeyError(number)  # as in a container that is given a number for a user
pwd.getpwuid = unknown
from edge_mdeq.cli import main
main()
"""


def test_a_user_without_a_home_can_run_and_is_told_what_that_costs(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    words = ["run", str(segmenter_bundle), "test://", "none", "--max-frames", "1"]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", HOMELESS, *words, "--graph-cache", "cache", "--device", "cpu"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "cannot be used" in run.stderr
    assert "no home directory" in run.stderr
    assert "XDG_STATE_HOME" in run.stderr
    assert "~" not in os.listdir(tmp_path)


@pytest.mark.parametrize("home", ["", "relative/folder"])
def test_a_home_that_is_none_is_not_taken_for_a_folder_here(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_path() == tmp_path / ".local/state/edge-mdeq/device.key"
    assert engine_roots(tmp_path, None)[1] == tmp_path / ".cache/edge-mdeq/engines"


# The clock


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The time of day is another one whenever somebody looks."""
    rng, now = random.Random(1), time.time()

    def jump() -> float:
        return now + rng.choice((-1, 1)) * rng.random() * 10**7

    monkeypatch.setattr(time, "time", jump)
    return jump


def test_frames_are_answered_alike_whatever_the_clock_says(
    segmenter_bundle: Path, tmp_path: Path, jumping: Callable[[], float]
) -> None:
    from mdeq_runtime.metrics import Metrics
    from mdeq_runtime.pipeline import run
    from mdeq_runtime.sinks import open_sink
    from mdeq_runtime.sinks.hard import HardFrames
    from mdeq_runtime.sinks.metrics import MetricsSink
    from mdeq_runtime.sources import open_source

    metrics, lines = Metrics(), tmp_path / "metrics.jsonl"
    sinks = [
        open_sink(tmp_path / "results.jsonl"),
        HardFrames(tmp_path / "hard", 10**8),
        MetricsSink(lines, metrics, every_s=0.01),
    ]
    with Model(segmenter_bundle, device="cpu") as model, open_source("test://?fps=200") as source:
        run(model.session(), source, sinks, max_frames=20, metrics=metrics)
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [each["index"] for each in found] == sorted(each["index"] for each in found)
    assert all(0 < ms < 10**5 for each in found for ms in each["times"].values())
    for line in lines.read_text().splitlines():
        said = json.dumps(json.loads(line))
        assert "-" not in said.replace("e-", ""), "seconds or rates below nothing"


def test_the_oldest_hard_frame_makes_room_though_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a start without a network: the time of day comes later, and may go either way."""
    from mdeq_runtime.results import Frame, Result
    from mdeq_runtime.sinks.hard import HardFrames

    clock = iter([4e8, 3e8, 3e8, 2e8, 1e8, 1e8])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    mask, kept = np.zeros(FRAME.shape[:2], np.uint8), []
    with HardFrames(tmp_path, 4 * 20_000) as sink:
        for index in range(6):
            result = Result(mask, None, 2, 0.5, False, True, "", index=index)
            sink.write(Frame(np.roll(FRAME, index), index, 2.0 * index), result)
    kept = sorted(json.loads(path.read_text())["index"] for path in tmp_path.glob("*.json"))
    assert 1 < len(kept) < 6
    assert kept == list(range(6 - len(kept), 6))


STAMPS = {  # names of files, and the time of day in lines of a log
    "runtime/mdeq_runtime/metrics.py",
    "runtime/mdeq_runtime/service/logs.py",
    "runtime/mdeq_runtime/sinks/hard.py",
    "runtime/mdeq_runtime/web/app.py",
}
WALL = {"time", "time_ns", "gmtime", "localtime", "strftime", "ctime", "now", "utcnow", "today"}


def test_the_time_of_day_is_only_asked_for_names_and_stamps() -> None:
    """What measures or waits looks at a clock that never jumps."""
    users = set()
    for package in ("edge_mdeq", "runtime", "export"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id in ("time", "datetime", "date")
                    and node.attr in WALL
                ):
                    users.add(str(file.relative_to(ROOT)))
    assert users <= STAMPS
