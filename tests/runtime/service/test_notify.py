"""systemd's protocol, against the real datagram socket that a manager listens on."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from manager import Manager, managing

from mdeq_runtime.service.notify import Notifier, open_notifier

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")


@pytest.mark.parametrize("kind", ["path", pytest.param("abstract", marks=LINUX)])
def test_messages_arrive_as_datagrams_of_lines(kind: str, tmp_path: Path) -> None:
    with managing(tmp_path if kind == "path" else None) as manager:
        notifier = open_notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "4000000"})
        assert notifier
        assert notifier.watchdog_s == 4.0
        before = time.monotonic_ns() // 1000
        notifier.ready()
        notifier.alive()
        notifier.status("two\nlines  are one")
        notifier.reloading()
        notifier.stopping()
        ready, alive, status, reloading, stopping = manager.listen(0.1)
    assert [ready, alive, stopping] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]
    assert status == "STATUS=two lines are one", "a line break would begin another assignment"
    flag, at = reloading.split("\n")
    assert flag == "RELOADING=1"
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = open_notifier({"WATCHDOG_USEC": "1000000"})
    assert not notifier
    assert notifier.watchdog_s is None
    notifier.ready()


def test_a_child_process_is_not_asked_again(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    open_notifier(environment)
    assert environment == {}


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("500000", "", 0.5),
        pytest.param("500000", str(os.getpid()), 0.5, id="ours"),
        ("500000", "1", None),  # another process is watched
        ("0", "", None),
        ("-5", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_for_the_process_that_it_names(
    tmp_path: Path, usec: str, pid: str, seconds: float | None
) -> None:
    with managing(tmp_path) as manager:
        notifier = open_notifier(
            {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
        )
        assert notifier.watchdog_s == seconds
        notifier.alive()
        assert manager.listen(0.05) == ([] if seconds is None else ["WATCHDOG=1"])


@pytest.mark.parametrize("address", ["relative", "@", "vsock:2:1234"])
def test_an_address_of_another_kind_is_said_and_passed_over(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not open_notifier({"NOTIFY_SOCKET": address})
    assert address in caplog.text


def test_a_manager_that_went_away_is_said_once_and_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "notify"))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.status("still here")
    assert caplog.text.count("cannot be told") == 1
    with managing(tmp_path) as manager:
        notifier.ready()
        assert manager.listen(0.05) == ["READY=1"]


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with managing(tmp_path) as manager:
        notifier = Notifier(manager.address)
        started = time.monotonic()
        for count in range(2000):  # more than any queue holds
            notifier.status(f"message {count}")
        assert notifier.failing
        assert time.monotonic() - started < 10


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
def test_systemds_own_tool_says_the_same(tmp_path: Path) -> None:
    with managing(tmp_path) as manager:
        environment = os.environ | {"NOTIFY_SOCKET": manager.address}
        command = ["systemd-notify", "--no-block", "--ready", "--status=all is well"]
        subprocess.run(command, env=environment, check=True, timeout=120)
        theirs = same_lines(manager)
        notifier = Notifier(manager.address)
        notifier.ready()
        notifier.status("all is well")
        assert same_lines(manager) == theirs


def same_lines(manager: Manager) -> set[str]:
    """All assignments, in whatever messages; systemd's tool adds some of its own."""
    lines = {line for message in manager.listen(0.2) for line in message.split("\n") if line}
    return {line for line in lines if line.startswith(("READY=", "STATUS="))}
