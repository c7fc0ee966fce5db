"""The programs of docs/embedding.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edge_mdeq
from mdeq_runtime import Result, SessionSettings, UntilTolerance

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"
SIZE = (64, 96)


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def frames(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(count)
    small = rng.integers(0, 256, (5, 40, 3), dtype=np.uint8)
    wide = np.asarray(cv2.resize(small, (40 * 16, SIZE[0])), np.uint8)
    return [np.ascontiguousarray(wide[:, 4 * k : 4 * k + SIZE[1]]) for k in range(count)]


def write_clip(path: Path, count: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    for frame in frames(count):
        writer.write(frame)
    writer.release()


@pytest.fixture
def run(segmenter_bundle: Path, tmp_path: Path) -> Callable[[str], str]:
    """Runs a program in a folder that has what it names; gives what it printed."""
    shutil.copytree(segmenter_bundle, tmp_path / "camvid-nano.mdeq")
    cv2.imwrite(str(tmp_path / "street.jpg"), frames(1)[0])
    for name, count in (("drive.mp4", 6), ("north.mp4", 3), ("south.mp4", 5)):
        write_clip(tmp_path / name, count)

    def call(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_page_has_three_programs() -> None:
    assert len(programs()) == 3


def test_one_image(run: Callable[[str], str], tmp_path: Path) -> None:
    printed = run(programs()[0])
    assert re.search(r"\d evaluations, residual 0\.\d{3}", printed)
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.shape == SIZE
    assert mask.max() < 4
    assert (tmp_path / "annotated.jpg").is_file()


def test_a_loop(run: Callable[[str], str]) -> None:
    assert run(programs()[1]).splitlines()[0] == "cold start: first frame"


def test_several_cameras_take_turns_until_each_ends(run: Callable[[str], str]) -> None:
    lines = [line.split()[:2] for line in run(programs()[2]).splitlines()]
    turns = [["north.mp4", "south.mp4"][k % 2] for k in range(8)] + ["south.mp4"] * 2
    assert [uri for uri, _ in lines] == turns
    for uri, count in (("north.mp4", 3), ("south.mp4", 5)):
        own = [what for name, what in lines if name == uri]
        assert own == [*(str(index) for index in range(count)), "has"]


def test_sessions_in_threads_of_their_own_answer_as_they_do_alone(segmenter_bundle: Path) -> None:
    """What the page says of threads: side by side, with states of their own."""
    settings = SessionSettings(UntilTolerance(0.05), reset_on_cut=False)
    clips = [frames(8), [np.ascontiguousarray(f[::-1]) for f in frames(8)], frames(8)[::-1]]
    with edge_mdeq.load(segmenter_bundle, settings=settings, threads=1) as model:
        alone = [[session(f) for f in clip] for clip in clips for session in [model.session()]]
        found: list[list[Result]] = [[] for _ in clips]

        def stream(k: int) -> None:
            with model.session() as session:
                found[k].extend(session(frame) for frame in clips[k])

        threads = [threading.Thread(target=stream, args=(k,)) for k in range(len(clips))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for together, single in zip(found, alone, strict=True):
        assert [r.iterations for r in together] == [r.iterations for r in single]
        for a, b in zip(together, single, strict=True):
            assert np.array_equal(a.output, b.output)
            assert a.residual == b.residual
