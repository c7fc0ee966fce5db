"""Several sessions of one model, and streams: they share graphs and no state."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from streams import CALM, SIZE, Picture, assert_same, blobs, calm, vivid

import edge_mdeq
from edge_mdeq.bundle import Rung
from edge_mdeq.errors import BundleError
from mdeq_runtime import Frame, Model, Result
from mdeq_runtime.backends import Answer


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


def test_two_sessions_share_graphs_but_no_state(model: Model) -> None:
    alone = model.session()
    expected = [alone(vivid(seed)) for seed in (1, 2, 3)]
    one, other = model.session(), model.session()
    found = []
    for seed in (1, 2, 3):
        found.append(one(vivid(seed)))
        other(vivid(seed + 10))
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.output, b.output)
        assert a.residual == b.residual
        assert a.warm == b.warm


def test_calls_from_two_threads_take_turns(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session(calm(cold=2, warm=2))
    inside, most = 0, 0
    residuals: list[float] = []  # in the order of the runs
    run = model.backend.run

    def counted(rung: Rung, image: Picture, state: Any) -> Answer:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)  # lets the other thread in, if anything does
        answer = run(rung, image, state)
        residuals.append(answer.residual)
        inside -= 1
        return answer

    monkeypatch.setattr(model.backend, "run", counted)
    results: list[Result] = []
    threads = [
        threading.Thread(target=lambda: results.extend(session(vivid(1)) for _ in range(5)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert most == 1
    assert sum(not result.warm for result in results) == 1
    alone = [model.session(calm(cold=2 * n, warm=0)) for n in (1, 5, 10)]
    expected = [session(vivid(1)).residual for session in alone]
    assert [residuals[0], residuals[4], residuals[9]] == pytest.approx(expected, rel=1e-2)


def test_a_stream_of_frames_answers_each_in_order(model: Model) -> None:
    frames = [vivid(seed) for seed in range(4)]
    found = list(model.stream(iter(frames)))
    assert [result.index for result in found] == [0, 1, 2, 3]
    assert [result.warm for result in found] == [False, True, True, True]
    session = model.session()
    for result, frame in zip(found, frames, strict=True):
        assert np.array_equal(result.output, session(frame).output)


def test_a_stream_reads_a_video_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (80, 48))
    for seed in range(5):
        writer.write(vivid(seed, (48, 80)))
    writer.release()
    found = list(model.stream(str(path)))
    assert [result.index for result in found] == list(range(5))
    assert [result.timestamp for result in found] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4], abs=0.01
    )
    assert {result.output.shape for result in found} == {(48, 80)}
    assert sum(result.warm for result in found) == 4


def test_two_streams_of_one_model_do_not_meet(model: Model) -> None:
    frames = [vivid(seed) for seed in range(3)]
    one, other = model.stream(frames), model.stream(frames)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.output, b.output)
        assert a.warm == b.warm


def test_load_is_the_same_door(segmenter_bundle: Path) -> None:
    with edge_mdeq.load(str(segmenter_bundle), settings=CALM, threads=1) as opened:
        assert isinstance(opened, Model)
        assert opened.labels == ("road", "sky", "tree", "car")
        assert opened(vivid(0)).output.shape == SIZE
    with pytest.raises(BundleError, match="does not exist"):
        edge_mdeq.load("nowhere.mdeq")


def test_a_warm_start_never_crosses_a_reconnect(model: Model) -> None:
    image = blobs(3)
    with model.session() as session:
        found = [session(Frame(image, i, 0.0, 0.0, epoch)) for i, epoch in enumerate((0, 0, 1, 1))]
    assert [result.warm for result in found] == [False, True, False, True]
    assert found[2].cold == "reconnect"
    assert found[2].reason == "reset: the source was opened again"
    assert_same(found[2], found[0])
