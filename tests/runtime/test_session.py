"""A stream's equilibrium on real graphs: when it is carried, when it is dropped, what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from streams import CALM, SIZE, assert_same, calm, vivid

from edge_mdeq.errors import BundleError, ConfigError, FrameError, SessionError
from mdeq_runtime import FixedIterations, Frame, Model, Session, SessionSettings

Copy = Callable[[Path], Path]


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def classifier(classifier_bundle: Path) -> Iterator[Model]:
    with Model(classifier_bundle, CALM, threads=1) as opened:
        yield opened


def poke(session: Session, value: float) -> None:
    """Put ``value`` where the next solve starts."""
    session.state.states[session.state.turn][0][0, 0, 0, 0] = value


# What is computed


def test_a_cold_frame_is_what_the_graph_says_of_its_rgb_pixels(
    model: Model, segmenter_bundle: Path
) -> None:
    """Against ONNX Runtime used directly, without bindings or carried buffers."""
    frame = vivid(0)
    graph = ort.InferenceSession(
        str(segmenter_bundle / "graphs" / "ort-cpu" / "solve-k4.onnx"),
        providers=["CPUExecutionProvider"],
    )
    feeds = {v.name: np.zeros(v.shape, np.float32) for v in graph.get_inputs()[1:]}
    names = ["output", "confidence", "residual"]
    answers = [
        graph.run(names, feeds | {"image": np.ascontiguousarray(image)[None]})
        for image in (frame[..., ::-1], frame)
    ]
    found = model.session(calm(cold=4, warm=0, confidence=True))(frame)
    mask, confidence, residual = answers[0]
    assert (found.output == mask[0]).mean() > 0.999
    assert found.residual == pytest.approx(float(residual[0]), rel=1e-4)
    assert found.confidence is not None
    low = cv2.resize(found.confidence, confidence.shape[:0:-1], interpolation=cv2.INTER_AREA)
    assert float(np.abs(low - confidence[0]).mean()) < 0.05
    assert (answers[1][0] != mask).mean() > 0.01, "else the channels' order would go unnoticed"


@pytest.mark.parametrize("frames", [2, 5])
def test_warm_frames_of_a_still_picture_are_one_long_solve(model: Model, frames: int) -> None:
    session = model.session(calm(cold=2, warm=2))
    results = [session(vivid(1)) for _ in range(frames)]
    assert [result.warm for result in results] == [False] + [True] * (frames - 1)
    assert [result.iterations for result in results] == [2] * frames
    assert_same(results[-1], model.session(calm(cold=2 * frames, warm=0))(vivid(1)))


def test_a_still_picture_converges(classifier: Model) -> None:
    """The classifier's f contracts; each warm frame brings it nearer, however loose it began."""
    frame = vivid(1, (32, 32))
    with classifier.session(replace(CALM, policy=FixedIterations(2, tol=0.02))) as session:
        results = [session(frame) for _ in range(20)]
    assert results[0].residual > 0.02 > results[-1].residual
    assert [r.converged for r in results] == [r.residual <= 0.02 for r in results]


def test_a_changed_picture_starts_from_the_carried_state(model: Model) -> None:
    session = model.session(calm(cold=4, warm=1))
    session(vivid(1))
    warm = session(vivid(2))
    cold = model.session(calm(cold=1, warm=0))(vivid(2))
    assert warm.warm
    assert warm.residual != pytest.approx(cold.residual, rel=1e-2)


def test_without_warm_start_every_frame_stands_alone(model: Model) -> None:
    session = model.session(calm(cold=2, warm=0))
    first, _, third = (session(vivid(seed)) for seed in (1, 2, 1))
    assert np.array_equal(first.output, third.output)
    assert third.reason == "warm start is off"
    assert (third.warm, third.iterations) == (False, 2)


def test_a_call_of_the_model_is_always_cold(model: Model) -> None:
    first, _, third = (model(vivid(seed)) for seed in (3, 4, 3))
    assert not third.warm
    assert third.iterations == 4
    assert np.array_equal(first.output, third.output)


# When it starts cold, and why


def test_the_first_frame_is_cold_and_the_next_is_warm(model: Model) -> None:
    session = model.session()
    first, second = session(vivid(0)), session(vivid(0))
    assert (first.warm, first.reason, first.iterations) == (False, "first frame", 4)
    assert (second.warm, second.reason, second.iterations) == (True, "", 2)


def test_a_reset_forgets_the_state_and_says_why(model: Model) -> None:
    session = model.session()
    first = session(vivid(0))
    session(vivid(5))
    session.reset("the lights went out")
    again = session(vivid(0))
    assert (again.warm, again.reason) == (False, "reset: the lights went out")
    assert np.array_equal(again.output, first.output)
    assert again.residual == first.residual
    assert session(vivid(0)).warm


def test_another_frame_size_starts_cold(model: Model) -> None:
    session = model.session()
    session(vivid(0))
    other = session(vivid(0, (48, 80)))
    assert not other.warm
    assert other.reason == "reset: frame size changed from (64, 96) to (48, 80)"
    assert session(vivid(0, (48, 80))).warm


def test_a_warm_solve_that_ends_badly_is_done_again_from_cold(model: Model) -> None:
    strict = model.session(replace(CALM, restart_above=1e-6))
    strict(vivid(0))
    found = strict(vivid(1))
    assert not found.warm
    assert found.reason.startswith("reset: residual 0.")
    assert found.iterations == 2 + 4, "the frame pays for both"
    assert_same(found, model(vivid(1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_state_is_dropped(model: Model, value: float) -> None:
    session = model.session(calm(warm=1))
    session(vivid(0))
    poke(session, value)
    found = session(vivid(1))
    assert (found.warm, found.reason) == (False, "reset: non-finite state")
    assert found.iterations == 1 + 4
    assert_same(found, model(vivid(1)))
    assert session(vivid(1)).warm


def test_a_poisoned_state_never_reaches_an_answer(model: Model) -> None:
    """Whichever number of evaluations meets it."""
    for warm in (1, 2, 4):
        session = model.session(calm(warm=warm))
        session(vivid(0))
        poke(session, float("nan"))
        found = session(vivid(1))
        assert np.isfinite(found.residual)
        for state in session.state.states[session.state.turn]:
            assert np.isfinite(state).all()


def test_nan_from_a_cold_start_is_an_error_and_not_an_answer(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session(calm(cold=1, warm=1))
    session(vivid(0))
    state = session.state
    with monkeypatch.context() as patch:
        patch.setattr(state, "reset", lambda: state.states[state.turn][0].fill(np.nan))
        session.reset()
        with pytest.raises(SessionError, match=r"frame 7: .* NaN or infinity from a cold start"):
            session(Frame(vivid(0), 7, 0.0))
    found = session(vivid(0))
    assert (found.warm, found.reason) == (False, "reset: non-finite state")
    assert np.isfinite(found.residual)


# Shapes


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(64, 96), (37, 211), (200, 50), (1, 1), (128, 192)])
def test_masks_have_the_size_of_their_frames(model: Model, fit: Any, size: tuple[int, int]) -> None:
    session = model.session(replace(CALM, fit=fit, confidence=True))
    found = session(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert found.output.shape == size
    assert found.output.dtype == np.uint8
    assert set(np.unique(found.output)) <= {0, 1, 2, 3, *([255] if fit == "crop" else [])}
    assert found.confidence is not None
    assert found.confidence.shape == size
    assert found.confidence.dtype == np.float32
    assert found.confidence.min() >= 0
    assert found.confidence.max() <= 1
    assert found.confidence[found.output != 255].min() > 1 / 5, "the best of four classes"


def test_confidence_comes_only_on_request(model: Model) -> None:
    assert model.session()(vivid(0)).confidence is None


def test_scores_sum_to_one(classifier: Model) -> None:
    session = classifier.session()
    for size in ((32, 32), (90, 41)):
        found = session(vivid(0, size))
        assert found.output.shape == (5,)
        assert found.output.dtype == np.float32
        assert found.output.sum() == pytest.approx(1.0, abs=1e-5)
        assert found.output.min() >= 0
        assert found.confidence is None


def test_a_result_knows_its_frame_and_its_times(model: Model) -> None:
    found = model.session()(Frame(vivid(0), 12, 3.5))
    assert (found.index, found.timestamp) == (12, 3.5)
    assert set(found.times) == {"fit", "solve", "restore"}
    assert min(found.times.values()) >= 0
    assert found.times["solve"] > 0


@pytest.mark.parametrize("kind", ["model", "classifier"])
def test_a_result_is_not_overwritten_by_the_next_frame(
    kind: str, request: pytest.FixtureRequest
) -> None:
    opened: Model = request.getfixturevalue(kind)
    session = opened.session(replace(CALM, confidence=True))
    first = session(vivid(1, opened.manifest.input.size))
    kept = first.output.copy(), None if first.confidence is None else first.confidence.copy()
    second = session(vivid(2, opened.manifest.input.size))
    assert not np.array_equal(first.output, second.output)
    assert np.array_equal(first.output, kept[0])
    if kept[1] is not None:
        assert np.array_equal(first.confidence, kept[1])


def test_a_frame_is_left_as_it_is(model: Model) -> None:
    frame = vivid(1)
    frame.flags.writeable = False
    before = frame.copy()
    model.session()(frame)
    assert np.array_equal(frame, before)


# What is refused


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "frame.png",
        np.zeros(SIZE, np.uint8),
        np.zeros((*SIZE, 4), np.uint8),
        np.zeros((*SIZE, 3), np.uint16),
        np.zeros((*SIZE, 3), np.float32),
        np.zeros((0, 96, 3), np.uint8),
    ],
)
def test_a_bad_frame_is_refused_and_the_stream_goes_on(model: Model, bad: Any) -> None:
    session = model.session()
    session(vivid(0))
    with pytest.raises(FrameError):
        session(bad)
    assert session(vivid(0)).warm


def test_counts_that_the_ladder_cannot_make_are_refused(model: Model) -> None:
    whole = model.bundle.profile("ort-cpu")
    profile = replace(whole, rungs=tuple(r for r in whole.rungs if r.evaluations > 1))
    with pytest.raises(SessionError, match="3 iterations cannot be made"):
        Session(model.manifest, profile, model.backend, calm(cold=3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": 4},
        {"restart_above": -1.0},
        {"restart_above": float("nan")},
        {"fit": "strech"},
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SessionSettings(**wrong)


def test_a_closed_session_says_so(model: Model) -> None:
    with model.session() as session:
        session(vivid(0))
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session(vivid(0))
    assert model.session()(vivid(0)).output.shape == SIZE


def test_nothing_runs_after_the_model_is_closed(segmenter_bundle: Path) -> None:
    opened = Model(segmenter_bundle, CALM)
    session = opened.session()
    session(vivid(0))
    opened.close()
    opened.close()
    with pytest.raises(SessionError, match="closed"):
        session(vivid(0))
    with pytest.raises(SessionError, match="closed"):
        opened(vivid(0))
    with pytest.raises(SessionError, match="closed"):
        next(opened.stream([vivid(0)]))


# What is loaded


def test_only_the_rungs_in_use_are_loaded(segmenter_bundle: Path) -> None:
    with Model(segmenter_bundle, CALM) as opened:
        assert not opened.backend.sessions
        opened.session(calm(cold=4, warm=2))
        assert [Path(name).stem for name in opened.backend.sessions] == ["solve-k2"]
        opened.session(calm(cold=1, warm=0))
        assert [Path(name).stem for name in opened.backend.sessions] == ["solve-k2", "solve-k1"]


def flip(path: Path) -> None:
    """Change one byte in the middle; the size stays."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_altered_weights_are_never_used(segmenter_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(segmenter_bundle)
    flip(path / "graphs" / "ort-cpu" / "weights-fp32.bin")
    with pytest.raises(BundleError, match=r"weights-fp32\.bin does not have the SHA-256"):
        Model(path)


def test_an_altered_graph_is_never_used(segmenter_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(segmenter_bundle)
    flip(path / "graphs" / "ort-cpu" / "solve-k2.onnx")
    with Model(path, CALM) as opened:
        with pytest.raises(BundleError, match=r"solve-k2\.onnx does not have the SHA-256"):
            opened.session(calm(cold=2))
        assert opened.session(calm(cold=1, warm=1))(vivid(0)).iterations == 1


def test_a_missing_graph_is_named(segmenter_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(segmenter_bundle)
    (path / "graphs" / "ort-cpu" / "solve-k4.onnx").unlink()
    with (
        Model(path, CALM) as opened,
        pytest.raises(BundleError, match=r"solve-k4\.onnx is missing"),
    ):
        opened.session(calm(cold=4, warm=0))
