"""Hard frames, kept within a quota; and the residuals of each solve, which tell why."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import ConfigError
from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
from mdeq_runtime.reasons import ColdKind
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.hard import HardFrames
from mdeq_runtime.sinks.lane import Lane

SIZE = (48, 64)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (*SIZE, 3), np.uint8)  # takes some 9 KB as PNG


def frame(index: int, seconds: float | None = None) -> Frame:
    return Frame(np.roll(NOISE, index), index, float(index) if seconds is None else seconds)


def result(
    index: int, converged: bool = False, cold: ColdKind | None = None, residual: float = 0.2
) -> Result:
    return Result(
        np.zeros(SIZE, np.uint8), None, 3, residual, converged, cold is None, cold or "",
        index=index, cold=cold, trace=((1, 0.9), (2, 0.5), (3, residual)),
    )  # fmt: skip


def kept(folder: Path) -> list[int]:
    """The numbers of the frames in a folder, oldest first."""
    return [int(path.stem.split("-")[1]) for path in sorted(folder.glob("*.png"))]


def test_what_stayed_above_tolerance_or_forced_a_reset_is_kept(tmp_path: Path) -> None:
    with HardFrames(tmp_path / "made" / "hard", 10**6, ("sky",)) as sink:
        sink.write(frame(0), result(0, True, "first_frame"))
        sink.write(frame(1), result(1, True))
        sink.write(frame(2), result(2, False))
        for index, cold in enumerate(("scene_cut", "residual", "non_finite", "failed"), 3):
            sink.write(frame(index), result(index, True, cold))
        for index, cold in enumerate(("requested", "off", "frame_size"), 7):
            sink.write(frame(index), result(index, True, cold))
    folder = tmp_path / "made" / "hard"
    assert kept(folder) == [2, 3, 4, 5, 6]
    for picture in folder.glob("*.png"):
        index = int(picture.stem.split("-")[1])
        np.testing.assert_array_equal(cv2.imread(str(picture)), frame(index).image)
        about = json.loads(picture.with_suffix(".json").read_text())
        assert about["index"] == index
        assert about["kept"] == ("tolerance" if index == 2 else about["reason"])
        assert about["trace"] == [[1, 0.9], [2, 0.5], [3, 0.2]]
        assert about["areas"] == {"sky": 1.0}


def test_a_second_of_one_kind_gives_one_frame(tmp_path: Path) -> None:
    sink = HardFrames(tmp_path, 10**6)
    for index in range(40):
        sink.write(frame(index, index / 10), result(index))
    assert kept(tmp_path) == [0, 10, 20, 30]
    sink.write(frame(41, 3.9), result(41, cold="scene_cut"))
    assert kept(tmp_path)[-1] == 41, "another kind"
    sink.write(frame(42, 0.5), result(42))
    assert kept(tmp_path)[-1] == 42, "a video that begins again"


def test_the_oldest_make_room_and_the_quota_is_kept(tmp_path: Path) -> None:
    other = tmp_path / "mine.png"
    other.write_bytes(b"x" * 100_000)
    quota = 50_000
    sink = HardFrames(tmp_path, quota)
    for index in range(12):
        sink.write(frame(index), result(index))
        files = [path for path in tmp_path.iterdir() if path != other]
        assert sum(path.stat().st_size for path in files) <= quota
    other.unlink()
    numbers = kept(tmp_path)
    assert numbers == list(range(12 - len(numbers), 12))
    assert len(numbers) >= 4
    again = HardFrames(tmp_path, quota // 2)  # what an earlier run kept counts
    again.write(frame(20), result(20))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= quota // 2
    assert kept(tmp_path)[-1] == 20


def test_a_full_disk_is_a_warning_and_leaves_no_half_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = HardFrames(tmp_path, 10**6)
    usage = namedtuple("usage", "total used free")
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
            assert sink.write(frame(0), result(0))
            assert sink.write(frame(1), result(1))
        with monkeypatch.context() as patch:

            def fail(path: Path, data: bytes) -> None:
                if path.suffix == ".json":
                    raise OSError(28, "No space left on device")
                path.write_bytes(data)

            patch.setattr("mdeq_runtime.sinks.hard.write_atomic", fail)
            assert sink.write(frame(2), result(2))
    assert [record.message for record in caplog.records] == [
        f"cannot keep hard frames in {tmp_path} (the disk is nearly full); going on",
        f"cannot keep hard frames in {tmp_path} (No space left on device); going on",
    ]
    assert list(tmp_path.iterdir()) == []
    assert sink.write(frame(3), result(3))
    assert kept(tmp_path) == [3]


def test_a_frame_above_the_quota_is_not_kept_and_a_quota_of_nothing_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = HardFrames(tmp_path, 1000)
    for index in range(3):
        other = Frame(frame(index).image[: 40 + index], index, float(index))  # of another size
        assert sink.write(other, result(index))
    assert caplog.text.count("more than the quota of 1000") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="a quota of 0 bytes keeps nothing"):
        HardFrames(tmp_path, 0)


def test_easy_frames_never_push_a_hard_one_out_of_the_queue(tmp_path: Path) -> None:
    sink = HardFrames(tmp_path, 10**6)
    lane = Lane(sink, wait=False)
    for index in range(300):
        lane.write(frame(index), result(index, converged=index != 100))
    lane.close()
    assert kept(tmp_path) == [100]
    assert lane.dropped == 0


# The trace, by a real model


def images(count: int, size: tuple[int, int]) -> list[Any]:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (count, 4, 6, 3), np.uint8)
    return [cv2.resize(one, size[::-1]) for one in small]


@pytest.mark.parametrize(
    "policy", [FixedIterations(2, 4), UntilTolerance(1e-6, 6)], ids=["fixed", "until"]
)
def test_a_trace_ends_with_the_residual_and_counts_every_evaluation(
    segmenter_bundle: Path, policy: Any
) -> None:
    """A start that was given up included: the second picture has nothing to do with the first."""
    settings = SessionSettings(policy, restart_above=1e-9, reset_on_cut=False)
    with Model(segmenter_bundle, settings, threads=1) as model, model.session() as session:
        size = model.manifest.input.size
        found = [session(image) for image in images(3, size)]
    for answer in found:
        counts = [count for count, _ in answer.trace]
        assert counts == sorted(set(counts))
        assert answer.trace[-1] == (answer.iterations, answer.residual)
    assert found[1].cold == "residual"
    given_up = found[1].trace[0]
    assert given_up[0] < found[1].iterations
    assert given_up[1] > settings.giving_up


def test_a_run_keeps_what_its_policy_left_above_tolerance(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    from mdeq_runtime.pipeline import run
    from mdeq_runtime.sources import open_source

    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(images(3, SIZE)):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), image)
    settings = SessionSettings(UntilTolerance(1e-6, 3))
    with Model(segmenter_bundle, settings, threads=1) as model, model.session() as session:
        sink = HardFrames(tmp_path / "hard", 10**7, model.labels)
        run(session, open_source(tmp_path / "pictures"), [sink])
    abouts = [json.loads(path.read_text()) for path in sorted((tmp_path / "hard").glob("*.json"))]
    assert [about["index"] for about in abouts] == [0, 1, 2]
    assert all(about["trace"][-1][1] == pytest.approx(about["residual"]) for about in abouts)
    assert all(about["residual"] > 1e-6 for about in abouts)


KILLED = """
import os, sys
from pathlib import Path
from edge_mdeq.files import replacing
with replacing(Path(sys.argv[1]) / "20261126T120000.000-000007.png") as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_half_written_goes_with_the_next_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    other = tmp_path / ".mine.png.12.tmp"
    other.write_bytes(b"mine")
    assert len(list(tmp_path.iterdir())) == 2
    HardFrames(tmp_path, 10**6).close()
    assert list(tmp_path.iterdir()) == [other]
