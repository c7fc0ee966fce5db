"""``edge-mdeq run`` as a service manager runs it: a process that is told by signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from manager import Manager, managing

pytestmark = pytest.mark.clock

SECRET = "hunter2"


def heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def service(
    manager: Manager | None, bundle: Path, source: str, *arguments: str | Path, **more: str
) -> Iterator[subprocess.Popen[str]]:
    """A run; it is killed if it is there in the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    if manager is not None:
        environment |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000"}
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(bundle), source]
    process = subprocess.Popen(
        [*command, "--input-width", "128", "--input-height", "96", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=heed_signals,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[str, str, float]:
    """What it says after SIGTERM, on stdout and stderr, and the seconds that it takes."""
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    return out, err, time.monotonic() - started


@pytest.fixture
def manager() -> Iterator[Manager]:
    with managing() as found:
        yield found


@pytest.fixture
def bundle(segmenter_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(segmenter_bundle, tmp_path / "own.mdeq"))


def events(text: str) -> list[dict[str, Any]]:
    """Every line is a JSON object."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_service_from_its_start_to_its_stop(
    manager: Manager, bundle: Path, tmp_path: Path
) -> None:
    log = tmp_path / "out.jsonl"
    with service(manager, bundle, "test://", log, "--log-format", "json") as process:
        manager.hear("READY=1")
        manager.hear("WATCHDOG=1")
        manager.hear(lambda said: said.startswith("STATUS") and "residual" in said)
        (bundle / "note").touch()
        process.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        shutil.move(bundle, bundle.with_name("away"))
        process.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        time.sleep(0.5)
        out, err, seconds = end(process)
    manager.hear("STOPPING=1")
    assert process.returncode == 130, err
    assert seconds < 2.0
    assert out == "", "all that is said is in the log"
    told = events(err)
    names = [entry["event"] for entry in told]
    assert names[0] == "start"
    assert names[-1] in ("stop", "interrupted")
    assert told[0]["source"] == "test pattern"
    assert told[0]["outputs"] == [str(log)]
    done, failed = [entry for entry in told if entry["event"] == "reload"]
    assert (done["level"], done["done"], done["place"]) == ("info", True, str(bundle))
    assert (failed["level"], failed["done"]) == ("warning", False)
    assert "does not exist" in failed["message"]
    cold = [entry for entry in told if entry["event"] == "cold_start"]
    assert all({"kind", "frame", "residual"} <= entry.keys() for entry in cold)
    kinds = {entry["kind"] for entry in cold}
    assert "reload" not in kinds, "the new bundle goes on from what it found beforehand"
    stop = next(entry for entry in told if entry["event"] == "stop")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert abs(len(lines) - stop["frames"]) <= 1, "the last one may have been written only"
    assert stop["why"] == "interrupted"
    assert all(entry["time"].endswith("Z") for entry in told)


def test_without_a_manager_a_hang_up_ends_the_run_unless_it_is_to_reload(bundle: Path) -> None:
    with service(None, bundle, "test://", "none") as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
        assert process.returncode == 130
    with service(None, bundle, "test://", "none", "--reload-on-hup") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline().startswith("info: reloaded: segmenter from ")
        _, err, _ = end(process)
    assert process.returncode == 130, err


def test_sigterm_ends_within_two_seconds_whatever_outputs_do(
    manager: Manager, bundle: Path, tmp_path: Path
) -> None:
    """A pipe that nobody reads, a page with a viewer that does not read, and a good file."""
    pipe, log = tmp_path / "pipe.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = ["--output", pipe, "--output", f"http://127.0.0.1:{port}"]
    with service(manager, bundle, "test://", log, *outputs) as process:
        manager.hear("READY=1")
        page = f"http://127.0.0.1:{port}/stream.mjpg"
        with urllib.request.urlopen(page, timeout=20) as viewer:
            viewer.read(100)
            manager.hear(lambda said: said.startswith("STATUS") and "residual" in said)
            _, err, seconds = end(process)
    assert process.returncode == 1, "something is lost"
    assert "pipe.jsonl was not finished when the run had to end" in err
    assert "results for it are left out" in err
    assert seconds < 2.5, "two, and the wait for a busy machine"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)


def test_a_camera_that_never_came_is_ready_alive_and_in_the_metrics(
    manager: Manager, bundle: Path, tmp_path: Path
) -> None:
    """Nobody listens there; its password is nowhere to be seen."""
    metrics = tmp_path / "metrics.jsonl"
    source = f"rtsp://joe:{SECRET}@127.0.0.1:9/stream"
    arguments = ["--input-wait", "--metrics", metrics, "--metrics-every", "0.5"]
    environment = os.environ | {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(bundle), source, "none"]
    process = subprocess.Popen(
        [*command, *map(str, arguments), "--log-format", "json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        manager.hear("READY=1")
        for _ in range(5):
            manager.hear("WATCHDOG=1")
        assert "source ok" not in manager.hear("STATUS")
        _, err, seconds = end(process)
    finally:
        process.kill()
        process.communicate()
    assert seconds < 2.5
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(lines) >= 3, "an outage is when somebody wants to know"
    assert {line["frames"] for line in lines} == {0}
    lost = next(entry for entry in events(err) if entry["event"] == "source")
    assert lost["state"] == "error"
    assert SECRET not in err + metrics.read_text() + str(manager.heard)


def test_an_error_is_an_event_too() -> None:
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", "no.mdeq", "test://", "none"]
    done = subprocess.run([*command, "--log-format", "json"], capture_output=True, text=True)
    assert done.returncode == 1
    (told,) = events(done.stderr)
    assert (told["level"], told["event"]) == ("error", "error")
    assert "does not exist" in told["message"]


def test_an_unknown_format_is_refused(bundle: Path) -> None:
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(bundle), "test://"]
    done = subprocess.run([*command, "--log-format", "xml"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "--log-format is 'xml', must be auto, plain or json" in done.stderr


@pytest.mark.parametrize("busy", [True, False])
def test_a_library_at_work_in_a_thread_is_not_interrupted_by_pythons_end(busy: bool) -> None:
    """C++ aborts when its thread is ended in the midst: a stop during a reload would be a crash."""
    code = (
        "import atexit, sys; from edge_mdeq.cli.console import BUSY, leave; "
        f"atexit.register(print, 'finalised'); BUSY.append(lambda: {busy}); print('said'); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == ("said\n" if busy else "said\nfinalised\n")
