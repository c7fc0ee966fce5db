"""Network cameras, against a real RTSP server that is killed, garbled, and changes its mind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from rtsp import Proxy, Server, free_port, need_server, noise_server, serving, wait_for
from rtsp_server import read_stamp

from edge_mdeq.errors import SourceError
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sources import Live, SourceOptions, State, open_source
from mdeq_runtime.sources.backoff import Backoff

pytestmark = pytest.mark.clock

FPS = 15
PERIOD_MS = 1000 / FPS


@pytest.fixture(scope="module", autouse=True)
def _server_is_there() -> None:
    need_server()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Watch:
    """A pipeline on a source in a thread, and what its frames were."""

    def __init__(self, source: Live, inference_s: float = 0.0) -> None:
        self.source, self.inference_s = source, inference_s
        self.results: list[Result] = []
        self.ages_ms: list[int] = []
        self.epochs: list[int] = []
        self.scale = (320, 240)
        self.stop = threading.Event()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            run(self.answer, self.source, [], on_result=self.results.append, stop=self.stop)
        except Exception as error:
            self.failure = error

    def answer(self, frame: Frame) -> Result:
        time.sleep(self.inference_s)
        image = cv2.resize(frame.image, self.scale)
        age = (int(1000 * time.monotonic()) - read_stamp(image)) & 0xFFFFFFFF
        self.ages_ms.append(age)
        self.epochs.append(frame.epoch)
        mask = np.zeros(frame.image.shape[:2], np.uint8)
        return Result(mask, None, 1, 0.1, True, True, "", index=frame.index)

    def state(self) -> State:
        return self.source.status.state

    def wait_for_frames(self, more: int, seconds: float) -> float:
        wanted = len(self.results) + more
        return wait_for(lambda: len(self.results) >= wanted, seconds, f"{more} frames")

    def close(self) -> None:
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


WAIT_S = 30  # an attempt that is under way when a server comes back has to time out first


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("--fps", str(FPS)) as running:
        yield running


def test_a_camera_vanishes_comes_back_and_is_never_behind(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in range(1, 4):  # its times are those of an idle machine
        try:
            vanish_and_come_back(server, caplog)
            return
        except (AssertionError, TimeoutError):
            if attempt == 3:
                raise
            caplog.clear()
            server.kill()
            server.start()


def vanish_and_come_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(server.uri)
    assert isinstance(source, Live)
    watch = Watch(source, inference_s=0.1)
    try:
        watch.wait_for_frames(25, 10)
        assert watch.state() is State.OK
        server.kill()
        wait_for(lambda: watch.state() is not State.OK, 3, "the loss is noticed")
        count = len(watch.results)
        time.sleep(2.5)
        assert len(watch.results) <= count + 2  # one being answered, one in the slot
        server.start()
        back = watch.wait_for_frames(1, 5)
        assert back < 2.0
        watch.wait_for_frames(12, 5)
    finally:
        watch.close()
    assert watch.failure is None
    states = [status.state for status in source.past]
    assert states[:3] == [State.RECONNECTING, State.OK, State.EOS]
    assert set(states[3:-1]) <= {State.RECONNECTING, State.ERROR, State.OK}
    assert states.count(State.ERROR) >= 3  # tried again and again
    assert states[-1] is State.OK
    assert source.status.reconnects == 1
    assert "refused" in next(s.detail for s in source.past if s.state is State.ERROR)
    steady = [age - 100 for age in watch.ages_ms[5:]]  # without the time of the inference
    assert np.percentile(steady, 90) <= 2 * PERIOD_MS + 10
    assert watch.epochs == sorted(watch.epochs)
    assert len(set(watch.epochs)) == 2
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("is back after" in line for line in said)
    assert len(said) <= 4  # not a line per attempt


def test_a_server_that_takes_connections_before_it_answers_holds_nobody_up(server: Server) -> None:
    source = open_source(server.uri)
    assert isinstance(source, Live)
    watch = Watch(source)
    try:
        watch.wait_for_frames(3, WAIT_S)
        server.kill()
        with socket.create_server(("127.0.0.1", server.port)):  # nobody accepts
            wait_for(lambda: "gets no answer" in source.status.detail, 5, "one attempt is over")
            time.sleep(0.7)  # the next one is under way
        server.start()
        back = watch.wait_for_frames(1, WAIT_S)
        assert back < 4.0, "FFmpeg alone waits for 8 s"
    finally:
        watch.close()
    assert watch.failure is None


def test_another_size_in_mid_stream(server: Server) -> None:
    """OpenCV's FFmpeg keeps giving the first size, and scales what comes to it."""
    source = open_source(server.uri)
    assert isinstance(source, Live)
    watch = Watch(source)
    try:
        watch.wait_for_frames(5, WAIT_S)
        watch.scale = (480, 360)
        server.tell("size 480 360")
        wait_for(lambda: watch.ages_ms[-1] > 10_000, WAIT_S, "a stamp where none was before")
        wait_for(lambda: watch.ages_ms[-1] < 1000, WAIT_S, "pictures of the new size")
        watch.wait_for_frames(10, WAIT_S)
        assert max(watch.ages_ms[-10:]) < 1000
    finally:
        watch.close()
    assert watch.failure is None
    assert {result.output.shape for result in watch.results} == {(240, 320)}


def test_garbage_in_mid_stream_and_garbage_instead_of_a_server(server: Server) -> None:
    proxy = Proxy(server.port)
    source = open_source(f"rtsp://127.0.0.1:{proxy.port}/stream")
    assert isinstance(source, Live)
    watch = Watch(source)
    try:
        watch.wait_for_frames(5, WAIT_S)
        proxy.garble(30)
        wait_for(lambda: proxy.noise <= 0, WAIT_S, "all garbage is sent")
        watch.wait_for_frames(10, WAIT_S)  # on the same connection, or the next one
    finally:
        watch.close()
        proxy.close()
    assert watch.failure is None


def test_a_port_that_talks_garbage_is_an_error_and_then_a_state(server: Server) -> None:
    port = free_port()
    with (
        noise_server(port),
        pytest.raises(SourceError, match=r"what is not RTSP; check the port"),
    ):
        open_source(f"rtsp://127.0.0.1:{port}/stream")
    source = open_source(server.uri)
    assert isinstance(source, Live)
    watch = Watch(source)
    try:
        watch.wait_for_frames(3, WAIT_S)
        server.kill()
        with noise_server(server.port):
            wait_for(lambda: "not RTSP" in source.status.detail, 12, "garbage is told from silence")
            assert watch.state() in (State.ERROR, State.RECONNECTING)
        server.start()
        watch.wait_for_frames(3, WAIT_S)
    finally:
        watch.close()
    assert watch.failure is None


def test_credentials(caplog: pytest.LogCaptureFixture) -> None:
    with serving("--password", "s3/cr@t") as server:
        where = server.uri.removeprefix("rtsp://")
        with pytest.raises(SourceError, match=r"needs credentials .* rtsp://USER:PASSWORD@"):
            open_source(server.uri)
        with pytest.raises(SourceError, match=r"rtsp://\*\*\*@.* is denied .* wrong user") as error:
            open_source(f"rtsp://joe:wr0ng@{where}")
        assert "wr0ng" not in str(error.value)
        source = open_source(f"rtsp://joe:s3%2Fcr%40t@{where}")
        assert isinstance(source, Live)
        source.patience = type(source.patience)(
            backoff=Backoff(refused_first_s=0.5, refused_cap_s=0.5)
        )
        source._pauses.backoff = source.patience.backoff
        watch = Watch(source)
        try:
            watch.wait_for_frames(3, WAIT_S)
            server.kill()
            server.options = ("--password", "changed")
            server.start()
            wait_for(lambda: "denied" in source.status.detail, WAIT_S, "the refusal is told")
            server.kill()
            server.options = ("--password", "s3/cr@t")
            server.start()
            watch.wait_for_frames(3, WAIT_S)
        finally:
            watch.close()
    everything = repr([*source.past, source.description, *caplog.messages])
    assert "s3/cr" not in everything
    assert "s3%2F" not in everything
    assert "***" in everything


@pytest.mark.parametrize("options", [SourceOptions(transport="udp"), SourceOptions(latency=0)])
def test_both_transports(server: Server, options: SourceOptions) -> None:
    with open_source(server.uri, options) as source:
        frames = [source.read() for _ in range(10)]
    assert all(frame is not None and frame.image.shape == (240, 320, 3) for frame in frames)


def test_a_path_that_is_not_there_and_a_camera_that_is_waited_for(server: Server) -> None:
    with pytest.raises(SourceError, match=r"is not at .* \(404\); check the path"):
        open_source(server.uri + "2")
    server.kill()
    with pytest.raises(SourceError, match=r"is refused by 127\.0\.0\.1"):
        open_source(server.uri)
    with open_source(server.uri, SourceOptions(wait=True)) as source:
        wait_for(lambda: source.status.state is State.ERROR, 5, "the absence is a state")
        server.start()
        assert source.read() is not None
        assert source.status.state is State.OK


STALLED = """
import sys, time
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Result
from mdeq_runtime.sources import open_source
import numpy as np

def session(frame):
    return Result(np.zeros((240, 320), np.uint8), None, 1, 0.1, True, True, "", index=frame.index)

said = []
def say(result):
    if result.index >= 5 and not said:
        said.append(print("running", flush=True))

summary = run(session, open_source(sys.argv[1]), [], on_result=say)
print(time.monotonic(), summary.interrupted, flush=True)
"""


def test_ctrl_c_ends_the_process_within_a_second_while_the_server_hangs(server: Server) -> None:
    command = [sys.executable, "-c", STALLED, server.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)  # its connection stays open, and silent
        time.sleep(1.0)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            ended, interrupted = process.communicate(timeout=20)[0].split()
        finally:
            process.kill()  # one that is deaf would be waited for without end
    os.kill(server.process.pid, signal.SIGCONT)
    assert process.returncode == 0
    assert interrupted == "True"
    assert float(ended) - started < 1.0, "the clock is the machine's"
