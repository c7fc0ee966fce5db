"""A bundle that is replaced while a camera runs: by a good one, a spoilt one, or another kind."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from manager import managing
from onnxruntime import InferenceSession
from streams import CALM, blobs

from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import BundleError, SessionError
from mdeq_runtime import FixedIterations, Frame, Model, Result, SessionSettings
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.service import rehearsal
from mdeq_runtime.service.notify import Notifier
from mdeq_runtime.service.reload import ReloadableSession
from mdeq_runtime.service.reloader import Reloader
from mdeq_runtime.sources import SourceOptions, open_source

FPS = 20.0
Copy = Callable[[Path], Path]


@pytest.fixture
def link(segmenter_bundle: Path, tmp_path: Path) -> Path:
    """``current``, a link to a copy of the segmenter's bundle, as in an installation."""
    shutil.copytree(segmenter_bundle, tmp_path / "one.mdeq")
    (tmp_path / "current").symlink_to("one.mdeq")
    return tmp_path / "current"


def point(link: Path, bundle: Path) -> None:
    """Let the link lead to another bundle, at once."""
    link.with_name("next").symlink_to(bundle)
    link.with_name("next").replace(link)


def another(bundle: Path, path: Path) -> Path:
    """A copy of a bundle under another name: another bundle that is as good."""
    shutil.copytree(bundle, path)
    manifest = path / "manifest.json"
    found = json.loads(manifest.read_text())
    found["name"] = path.stem
    manifest.write_text(json.dumps(found))
    return path


def spoil(bundle: Path) -> Path:
    """One bit of the weights is wrong."""
    (weights,) = bundle.glob("graphs/ort-cpu/*.bin")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    return bundle


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


# Under a memory limit, in processes of their own: a process has one arena for good

TIGHT = """
import json, shutil, sys
from pathlib import Path
import numpy as np
from edge_mdeq.errors import BundleError, EdgeMdeqError, MemoryLimitError
from mdeq_runtime import FixedIterations, Frame, Model, SessionSettings
from mdeq_runtime.service import reload
link, what = Path(sys.argv[1]), sys.argv[2]
settings = SessionSettings(FixedIterations(2), reset_on_cut=False, restart_above=1e9)
least = 0
for limit in ("1MiB", "2MiB"):  # the first one brings in what a limit needs
    try:
        Model(link, settings, threads=1, memory_limit=limit)
    except MemoryLimitError as error:
        least = int(str(error).split("the least it needs is ")[1].split()[0]) + 6
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
model = Model(link, settings, threads=1, memory_limit=f"{least}MiB")
changes = []
with reload.ReloadableSession(link, model, changes.append) as session:
    session(image)
    if what == "gone":
        for file in link.resolve().rglob("*.onnx"):
            file.write_bytes(b"")
    if what == "fails":
        loading = reload.rehearse
        def rehearse(session, size, newest=None):
            if changes[-1:] == [None] and not rehearse.failed:
                rehearse.failed = True
                raise BundleError("it does not answer")
            loading(session, size, newest)
        rehearse.failed = False
        reload.rehearse = rehearse
    for path in sys.argv[3:]:
        link.unlink()
        link.symlink_to(path)
        try:
            session.reload()
            print("reloaded", session.manifest.name)
        except EdgeMdeqError as error:
            print(type(error).__name__, error)
    found = session(image)
    print("goes on", session.manifest.name, found.cold)
    print("without", changes.count(None))
    report = session.model.memory()
    print("within", report.measured <= report.limit and report.predicted <= report.limit)
"""

needs_proc = pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc")


def tight(link: Path, what: str, *bundles: Path) -> list[str]:
    command = [sys.executable, "-c", TIGHT, str(link), what, *map(str, bundles)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_proc
def test_where_both_do_not_fit_the_old_one_goes_first_if_the_new_one_is_good(
    link: Path, segmenter_bundle: Path, classifier_bundle: Path, tmp_path: Path
) -> None:
    two = another(segmenter_bundle, tmp_path / "two.mdeq")
    damaged = spoil(another(segmenter_bundle, tmp_path / "damaged.mdeq"))
    said = tight(link, "", damaged, classifier_bundle, two)
    assert said[0].startswith("BundleError")
    assert said[1].startswith("BundleError")
    assert said[2:] == ["reloaded two", "goes on two reload", "without 1", "within True"], (
        "only the good one was worth a pause"
    )


@needs_proc
def test_the_old_one_is_loaded_again_if_the_new_one_fails_after_all(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    said = tight(link, "fails", another(segmenter_bundle, tmp_path / "two.mdeq"))
    name = open_bundle(segmenter_bundle).manifest.name
    assert said == [
        "BundleError it does not answer", f"goes on {name} reload", "without 1", "within True",
    ]  # fmt: skip


@needs_proc
def test_what_could_not_be_loaded_again_is_not_let_go_of(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    said = tight(link, "gone", another(segmenter_bundle, tmp_path / "two.mdeq"))
    assert said[0].startswith("MemoryLimitError")
    assert "could not be loaded again; start again to change it" in said[0]
    assert said[1].startswith("goes on segmenter"), "warm or cold, by the model that is loaded"
    assert said[2] == "without 0"
