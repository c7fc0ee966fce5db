"""What a stream allocates: nothing that stays, and nothing of its state's size for a frame."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams import SIZE, blobs

from mdeq_runtime import FixedIterations, Frame, Model, SessionSettings, UntilDeadline
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.policies import Policy, UntilTolerance
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources.base import Source

pytestmark = pytest.mark.clock

SAMPLE = Path(__file__).parents[2] / "samples" / "bundles" / "camvid-nano.mdeq"
SETTLED, LAST = 100, 1_100  # frames
GROWTH = 64 * 1024  # bytes
SLACK = 64 * 1024  # the cut detector's small pictures, the result, times


class Drive(Source):
    """A drive with cuts and frames of two sizes, 1,100 frames in all."""

    live = False
    fps = None
    size = None
    description = "a drive"

    def __init__(self) -> None:
        wide, dark = blobs(1, (64, 200)), np.full((*SIZE, 3), 9, np.uint8)
        moving = [np.ascontiguousarray(wide[:, k : k + 96]) for k in range(40)]
        self.images = [*moving, dark, dark, blobs(2, (50, 61)), blobs(2, (50, 61))]
        self.index = 0

    def read(self) -> Frame | None:
        if self.index == LAST:
            return None
        self.index += 1
        return Frame(self.images[self.index % len(self.images)], self.index - 1, 0.0)

    def close(self) -> None:
        pass


class Weighing:
    """A session that notes what Python holds before the frames ``SETTLED`` and ``LAST``."""

    def __init__(self, session: Any) -> None:
        self.session, self.held = session, {}

    def __call__(self, frame: Frame) -> Any:
        if frame.index in (SETTLED, LAST - 1):
            gc.collect()
            self.held[frame.index] = tracemalloc.get_traced_memory()[0]
        return self.session(frame)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "policy",
    [FixedIterations(2), UntilTolerance(0.05, max_iterations=3), UntilDeadline(1e-3)],
    ids=lambda p: type(p).__name__,
)
def test_a_thousand_frames_leave_nothing_behind(
    segmenter_bundle: Path, tmp_path: Path, policy: Policy
) -> None:
    """Through the whole pipeline, with metrics and JSON lines."""
    settings = SessionSettings(policy, confidence=True)
    with Model(segmenter_bundle, settings, threads=1) as model, model.session() as session:
        weighing = Weighing(session)
        sink = open_sink(str(tmp_path / "run.jsonl"), fps=None, labels=model.labels, palette=())
        summary = run(weighing, Drive(), [sink], metrics=Metrics(model.backend))
    assert summary.frames == LAST
    assert summary.cold["frame_size"] > 40
    assert summary.cold["scene_cut"] > 20
    grown = weighing.held[LAST - 1] - weighing.held[SETTLED]
    assert grown < GROWTH


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample bundle is not in this copy")
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("policy", [FixedIterations(2), UntilTolerance(1e-9, max_iterations=2)])
@pytest.mark.parametrize("size", [(192, 256), (300, 400)], ids=["model's size", "another size"])
def test_a_frame_allocates_its_answer_and_nothing_of_the_states_size(
    policy: Policy, size: tuple[int, int]
) -> None:
    """The highest that Python and NumPy hold while a frame is answered, above before."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    settings = SessionSettings(policy, restart_above=1e9, reset_on_cut=True)
    with Model(SAMPLE, settings, threads=1) as model, model.session() as session:
        largest = max(4 * np.prod(spec.shape) for spec in model.manifest.states)
        height, width = model.manifest.input.size
        # the picture that the model sees, and the mask half-way, enlarged in one direction
        fitted = 0 if size == (height, width) else 3 * height * width + height * size[1]
        buffers = {id(array) for side in session.state.states for array in side}
        for image in images:
            session(image)
        for index in range(4):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            result = session(images[index % 2])
            peak = tracemalloc.get_traced_memory()[1] - before
            assert result.warm
            assert result.output.nbytes <= peak < result.output.nbytes + fitted + SLACK
            if not fitted:
                assert peak < largest
        assert {id(array) for side in session.state.states for array in side} == buffers


def test_a_traced_array_counts(traced: None) -> None:
    """What the test above stands on: NumPy's memory is in the figure."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    np.empty(1_000_000).fill(0)
    assert tracemalloc.get_traced_memory()[1] - before > 8_000_000
