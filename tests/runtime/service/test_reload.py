"""A bundle that is replaced while a camera runs: by a good one, a spoilt one, or another kind."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from bundles import another, point, spoil
from manager import managing
from onnxruntime import InferenceSession
from streams import CALM, blobs

from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import BundleError, SessionError
from mdeq_runtime import FixedIterations, Frame, Model, Result, SessionSettings
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.service import rehearsal
from mdeq_runtime.service.notify import Notifier
from mdeq_runtime.service.reload import ReloadableSession
from mdeq_runtime.service.reloader import Reloader
from mdeq_runtime.sources import SourceOptions, open_source

FPS = 20.0
Copy = Callable[[Path], Path]


@contextmanager
def opened(link: Path, settings: SessionSettings = CALM) -> Iterator[ReloadableSession]:
    with ReloadableSession(link, Model(link, settings, threads=1)) as session:
        yield session


@pytest.fixture
def no_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no picture to wait for."""
    monkeypatch.setattr(rehearsal, "PICTURE_S", 0.01)


@pytest.fixture
def slow_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it may take a while."""
    monkeypatch.setattr(rehearsal, "PICTURE_S", 20.0)


# Between two frames


@pytest.mark.usefixtures("no_camera")
@pytest.mark.parametrize("good", [True, False])
def test_a_reload_leaves_nothing_to_the_garbage_collector(
    link: Path, segmenter_bundle: Path, tmp_path: Path, good: bool
) -> None:
    """Which comes by every few hours."""
    two = another(segmenter_bundle, tmp_path / "two.mdeq")
    with opened(link) as session:
        session(Frame(blobs(1), 0, 0.0))
        session.reload()  # what is made once is there afterwards
        point(link, two if good else spoil(two))
        gc.collect()
        gc.disable()
        try:
            with nullcontext() if good else pytest.raises(BundleError):
                session.reload()
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.usefixtures("no_camera")
def test_without_a_camera_the_next_frame_starts_cold(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    with opened(link) as session:
        before = [session(Frame(blobs(1), index, 0.0)) for index in range(2)]
        assert before[1].warm
        point(link, another(segmenter_bundle, tmp_path / "two.mdeq"))
        session.limit = 2
        session.reload()
        assert session.manifest.name == "two"
        assert session.limit == 2, "a governor's limit stays"
        session.limit = None
        first, second = (session(Frame(blobs(1), index, 0.0)) for index in (2, 3))
    assert (first.warm, first.cold) == (False, "reload")
    assert first.reason == "reset: the bundle was opened again"
    assert second.warm
    assert (first.output == before[0].output).all(), "nothing is left of its rehearsal"
    assert first.residual == pytest.approx(before[0].residual)


@pytest.mark.usefixtures("no_camera")
def test_a_policy_that_was_changed_meanwhile_stays(link: Path) -> None:
    with opened(link) as session:
        session.use(FixedIterations(4))
        session.reload()
        assert session.settings.policy == FixedIterations(4)
        assert session(blobs(1)).iterations == 4


@pytest.mark.usefixtures("no_camera")
def test_the_old_model_is_let_go_of(link: Path) -> None:
    changes: list[Model | None] = []
    with ReloadableSession(link, Model(link, CALM), changes.append) as session:
        old, old_session = session.model, session.session
        session.reload()
        assert changes == [session.model]
        with pytest.raises(SessionError, match="closed"):
            old_session(blobs(1))
        with pytest.raises(SessionError, match="closed"):
            old.backend.load("graphs/ort-cpu/solve-k1.onnx")


def test_what_is_no_good_changes_nothing(
    link: Path, segmenter_bundle: Path, classifier_bundle: Path, tmp_path: Path
) -> None:
    damaged = spoil(another(segmenter_bundle, tmp_path / "damaged.mdeq"))
    renamed = another(segmenter_bundle, tmp_path / "renamed.mdeq")
    manifest = json.loads((renamed / "manifest.json").read_text())
    manifest["labels"][0] = "street"
    (renamed / "manifest.json").write_text(json.dumps(manifest))
    short = another(segmenter_bundle, tmp_path / "short.mdeq")
    (short / "manifest.json").write_text((short / "manifest.json").read_text()[:-40])
    with opened(link) as session:
        session(Frame(blobs(1), 0, 0.0))
        model = session.model
        for bundle, said in (
            (damaged, "SHA-256"),
            (classifier_bundle, "is for classification, this run for segmentation"),
            (renamed, "has other classes"),
            (short, "manifest"),
            (tmp_path / "missing.mdeq", "does not exist"),
        ):
            point(link, bundle)
            with pytest.raises(BundleError, match=said):
                session.reload()
            assert session.model is model
            assert session(Frame(blobs(1), 1, 0.0)).warm, "even its equilibrium is kept"


def test_a_bundle_that_cannot_run_the_present_policy_changes_nothing(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    fewer = another(segmenter_bundle, tmp_path / "fewer.mdeq")
    found = json.loads((fewer / "manifest.json").read_text())
    for profile in found["profiles"].values():
        profile["rungs"] = [r for r in profile["rungs"] if r["steps"][0]["evaluations"] > 1]
    (fewer / "manifest.json").write_text(json.dumps(found))
    settings = SessionSettings(FixedIterations(1), reset_on_cut=False, restart_above=1e9)
    with opened(link, settings) as session:
        point(link, fewer)
        with pytest.raises(SessionError):
            session.reload()
        assert session(blobs(1)).iterations == 1


# While a camera runs


class Watched:
    """A run on ``test://`` in a thread, with a reloader."""

    def __init__(self, session: ReloadableSession, notifier: Notifier) -> None:
        self.results: list[Result] = []
        self.stop = threading.Event()
        self.session, self.reloader = session, Reloader(session, notifier)
        self.source = open_source("test://", SourceOptions(width=128, height=96, rate=FPS))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        run(
            self.session, self.source, [], on_result=self.results.append, stop=self.stop,
            metrics=Metrics(),
        )  # fmt: skip

    def wait(self, frames: int, seconds: float = 60.0) -> None:
        """For so many more answers."""
        wanted, ends = len(self.results) + frames, time.monotonic() + seconds
        while len(self.results) < wanted:
            assert self.thread.is_alive()
            assert time.monotonic() < ends
            time.sleep(0.01)


@pytest.mark.usefixtures("slow_camera")
@pytest.mark.clock
def test_frames_are_late_for_no_reload_good_or_bad(
    link: Path, segmenter_bundle: Path, classifier_bundle: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    good = another(segmenter_bundle, tmp_path / "two.mdeq")
    bad = spoil(another(segmenter_bundle, tmp_path / "bad.mdeq"))
    with managing() as manager, opened(link) as session:
        watched = Watched(session, Notifier(manager.address))
        try:
            watched.wait(10)
            for bundle in (good, bad, classifier_bundle, good):
                point(link, bundle)
                watched.reloader.ask()
                assert manager.hear("RELOADING=1\nMONOTONIC_USEC=")
                assert manager.hear("READY=1")
                watched.wait(5)
        finally:
            watched.stop.set()
            watched.thread.join(10)
    assert (watched.reloader.done, watched.reloader.failed) == (2, 2)
    assert caplog.text.count("not reloaded, the present bundle stays") == 2
    assert all(result.warm for result in watched.results[1:]), "from what was found beforehand"
    ages = np.array([result.age_ms for result in watched.results[5:]])
    assert ages.max() < 2 * 1000 / FPS


@pytest.mark.usefixtures("slow_camera")
def test_what_is_tried_out_takes_turns_with_the_frames(
    link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two solves at once would take memory twice, which the process would keep."""
    running, most, mine, real = 0, 0, set(), InferenceSession.run_with_iobinding
    counting = threading.Lock()

    def run_with_iobinding(session: InferenceSession, *args: object) -> None:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
            mine.add(threading.get_ident())
        time.sleep(0.002)  # long enough to be met
        real(session, *args)
        with counting:
            running -= 1

    monkeypatch.setattr(InferenceSession, "run_with_iobinding", run_with_iobinding)
    with opened(link) as session:
        over = threading.Event()

        def answer() -> None:
            index = 0
            while not over.is_set():
                session(Frame(blobs(1), index, 0.0))
                index += 1

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            for _ in range(3):
                session.reload()
        finally:
            over.set()
            thread.join()
    assert len(mine) == 2, "there was something to try out, and there were frames"
    assert most == 1


@pytest.mark.usefixtures("slow_camera")
def test_a_new_model_goes_on_from_the_newest_picture(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    """Not from the first one it saw, and not from noise."""
    image, frames = blobs(1), threading.Event()
    with opened(link) as session:

        def answer() -> None:
            while not frames.is_set():
                session(image)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            point(link, another(segmenter_bundle, tmp_path / "two.mdeq"))
            session.reload()
        finally:
            frames.set()
            thread.join()
        assert session.newest.frame is None, "it is not kept"
        settled = session(image)
        session.reset()
        cold = session(image)
    assert settled.warm
    assert settled.residual < cold.residual


@pytest.mark.usefixtures("no_camera")
def test_frames_are_whole_while_models_come_and_go(link: Path, segmenter_bundle: Path) -> None:
    """Frames as fast as they go, policies too, and a reload at any moment between them."""
    image = blobs(3)
    with opened(link, SessionSettings(FixedIterations(4), carry=False)) as session:
        expected, failures = session(image).output, []

        def answer() -> None:
            try:
                for _ in range(200):
                    assert (session(image).output == expected).all()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=answer)
        thread.start()
        reloads = 0
        while thread.is_alive() or reloads < 3:
            session.reload()
            session.use(FixedIterations(4))
            reloads += 1
        thread.join()
    assert not failures
    assert open_bundle(segmenter_bundle).manifest == session.manifest
