"""What the watchdog hears: answered frames and cameras that are away, but no hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from manager import Manager, managing

from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.service.heartbeat import Heartbeat
from mdeq_runtime.service.notify import Notifier
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.status import Picture, State, Status

pytestmark = pytest.mark.clock

WATCHDOG_S = 0.4


class Camera(Source):
    """Fifty frames a second; its ``state`` is set from outside, and without OK it gives none."""

    live, patient, fps, size, description = True, True, 50.0, (24, 32), "test camera"

    def __init__(self) -> None:
        self.state, self.silent, self.index = State.OK, False, -1
        self.picture = Picture.OK
        self.closed = threading.Event()

    @property
    def status(self) -> Status:
        detail = "" if self.state is State.OK else "no answer from rtsp://gate; try its cable"
        return Status(self.state, detail, picture=self.picture)

    def read(self) -> Frame | None:
        while not self.closed.wait(0.02):
            if self.state is State.OK and not self.silent:
                self.index += 1
                now = time.monotonic()
                return Frame(np.zeros((24, 32, 3), np.uint8), self.index, now, now)
        return None

    def close(self) -> None:
        self.closed.set()


class Session:
    """Answers at once, until it is told to hang."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, frame: Frame) -> Result:
        self.go_on.wait(30)
        mask = np.zeros(frame.image.shape[:2], np.uint8)
        return Result(mask, None, 2, 0.125, True, True, "", index=frame.index)


class Rig:
    """A run with a heartbeat, in a thread."""

    def __init__(self, manager: Manager) -> None:
        self.camera, self.session, self.metrics = Camera(), Session(), Metrics()
        self.heartbeat = Heartbeat(Notifier(manager.address, WATCHDOG_S), self.metrics)
        self.thread = threading.Thread(target=self.run)

    def start(self) -> None:
        self.heartbeat.begin()
        self.thread.start()

    def run(self) -> None:
        run(
            self.session, self.camera, [], metrics=self.metrics,
            on_frame=self.heartbeat.taken, on_result=self.heartbeat.answered,
        )  # fmt: skip

    def close(self) -> None:
        self.session.go_on.set()
        self.camera.close()
        if self.thread.ident is not None:
            self.thread.join(10)
        self.heartbeat.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    with managing() as found:
        yield found


@pytest.fixture
def rig(manager: Manager) -> Iterator[Rig]:
    made = Rig(manager)
    try:
        yield made
    finally:
        made.close()


def beats(manager: Manager, seconds: float) -> int:
    return manager.listen(seconds).count("WATCHDOG=1")


def test_ready_first_then_beats_while_frames_are_answered_and_a_stop_last(
    rig: Rig, manager: Manager
) -> None:
    rig.start()
    assert beats(manager, 2.0) >= 2.0 / WATCHDOG_S, "at least as often as the watchdog asks for"
    rig.close()
    manager.listen(0.05)
    assert manager.heard[0] == "READY=1"
    assert [m for m in manager.heard if not m.startswith(("STATUS", "WATCHDOG"))] == [
        "READY=1", "STOPPING=1",
    ]  # fmt: skip
    told = [message for message in manager.heard if message.startswith("STATUS=")]
    assert 2 <= len(told) <= 4, "at most one a second"
    assert "residual 0.125" in told[-1]
    assert "source ok" in told[-1]
    rate = float(told[-1].removeprefix("STATUS=").split()[0])
    assert 5 < rate < 51, "fifty a second, where nothing else runs"


@pytest.mark.parametrize("state", [State.RECONNECTING, State.ERROR])
def test_a_camera_that_is_away_is_no_hang(rig: Rig, manager: Manager, state: State) -> None:
    rig.start()
    manager.hear("WATCHDOG")
    rig.camera.state = state
    time.sleep(WATCHDOG_S)
    manager.listen()
    assert beats(manager, 3 * WATCHDOG_S) >= 3
    manager.unread.clear()
    status = manager.hear("STATUS")
    assert f"source {state.value}: no answer from rtsp://gate" in status


def test_a_camera_that_never_came_is_no_hang(rig: Rig, manager: Manager) -> None:
    rig.camera.state = State.RECONNECTING
    rig.start()
    assert manager.hear("READY")
    assert beats(manager, 4 * WATCHDOG_S) >= 4


def test_a_frame_that_is_never_done_is_a_hang_until_it_is_done(rig: Rig, manager: Manager) -> None:
    rig.start()
    manager.hear("WATCHDOG")
    rig.session.go_on.clear()
    time.sleep(WATCHDOG_S)
    manager.listen()
    assert beats(manager, 4 * WATCHDOG_S) == 0
    manager.unread.clear()
    rig.session.go_on.set()
    manager.hear("WATCHDOG")


def test_a_source_that_claims_to_be_well_and_gives_nothing_is_a_hang(
    rig: Rig, manager: Manager
) -> None:
    rig.start()
    manager.hear("WATCHDOG")
    rig.camera.silent = True
    time.sleep(WATCHDOG_S)
    manager.listen()
    assert beats(manager, 4 * WATCHDOG_S) == 0


def test_a_hang_while_the_camera_is_away_is_a_hang_all_the_same(rig: Rig, manager: Manager) -> None:
    rig.start()
    manager.hear("WATCHDOG")
    rig.session.go_on.clear()
    time.sleep(WATCHDOG_S)
    rig.camera.state = State.RECONNECTING
    manager.listen()
    assert beats(manager, 4 * WATCHDOG_S) == 0


def test_pictures_that_do_not_change_show_in_the_status() -> None:
    metrics = Metrics()
    metrics.source = camera = Camera()
    heartbeat = Heartbeat(Notifier(), metrics)
    assert "pictures" not in heartbeat.status()
    camera.picture = Picture.FROZEN
    assert "source ok (frozen pictures)" in heartbeat.status()
