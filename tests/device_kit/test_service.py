"""The systemd unit, its example of settings, and the container file, held against what they use."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer

from edge_mdeq.cli import app
from edge_mdeq.cli.console import INTERRUPTED

ROOT = Path(__file__).parents[2]
KIT = ROOT / "runtime" / "device"
UNIT = KIT / "edge-mdeq@.service"
LATER = {"RestartSteps", "RestartMaxDelaySec"}  # from systemd 254 on; older ones ignore them
Install = Callable[..., "subprocess.CompletedProcess[str]"]


def settings(text: str) -> dict[str, list[str]]:
    """The lines ``Key=value`` of a unit or of a file of variables; a key may come several times."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found[key].append(value)
    return found


@pytest.fixture(scope="module")
def unit() -> dict[str, list[str]]:
    return settings(UNIT.read_text())


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    found = settings((KIT / "edge-mdeq.env.example").read_text())
    return {key: value for key, (value,) in found.items()}


def parse(arguments: list[str]) -> click.Context:
    """What the real command line makes of arguments; nothing is run."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    command = group.commands[arguments[0]]
    return command.make_context(arguments[0], arguments[1:])


def test_the_units_command_is_one_that_the_command_line_takes(
    unit: dict[str, list[str]], example: dict[str, str]
) -> None:
    (command,) = unit["ExecStart"]
    program, *words = command.split()
    assert program == "/opt/edge-mdeq/current/bin/edge-mdeq", "where install.sh puts it"
    arguments = []
    for word in words:  # as systemd does: ${X} is one word, $X is split into its own
        found = re.fullmatch(r"\$\{?(\w+)\}?", word)
        value = example[found[1]] if found else word
        arguments += [value] if word.startswith("${") or not found else shlex.split(value)
    given = parse(arguments).params
    assert str(given["bundle"]) == example["BUNDLE"]
    assert given["source"] == example["SOURCE"]
    assert given["headless"]
    assert given["memory_limit"]


def test_every_variable_of_the_unit_is_in_the_example(
    unit: dict[str, list[str]], example: dict[str, str]
) -> None:
    used = set(re.findall(r"\$\{?(\w+)\}?", " ".join(unit["ExecStart"] + unit["ExecStartPre"])))
    assert used == set(example)


def test_the_memory_limits_leave_room_above_the_runs_own(example: dict[str, str]) -> None:
    from mdeq_runtime.planner import parse_bytes

    promised = parse_bytes(example["OPTIONS"].split("--memory-limit ")[1].split()[0])
    high, most = (parse_bytes(example[name] + "iB") for name in ("MEMORY_HIGH", "MEMORY_MAX"))
    assert promised < high < most


def test_it_starts_again_whatever_ended_it_but_a_wrong_option(unit: dict[str, list[str]]) -> None:
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["SuccessExitStatus"] == [str(INTERRUPTED)]
    done = subprocess.run(
        [sys.executable, "-m", "edge_mdeq.cli", "run", "--no-such-option"], capture_output=True
    )
    assert unit["RestartPreventExitStatus"] == [str(done.returncode)]


def test_cameras_the_gpu_and_the_camera_daemon_stay_in_reach(unit: dict[str, list[str]]) -> None:
    assert unit["PrivateDevices"] == ["no"]
    assert unit["PrivateTmp"] == ["no"], "the daemon's socket is /tmp/argus_socket"
    closing = {"DeviceAllow", "DevicePolicy", "ProtectClock", "PrivateUsers", "PrivateNetwork"}
    assert not closing & set(unit)
    assert {"video", "render"} <= set(unit["SupplementaryGroups"][0].split())
    assert "AF_UNIX" in unit["RestrictAddressFamilies"][0].split()


def test_it_writes_neither_to_homes_nor_to_the_system(unit: dict[str, list[str]]) -> None:
    assert unit["ProtectHome"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["User"] not in ([], ["root"])
    caches = [value for value in unit["Environment"] if "XDG_CACHE_HOME=%C/" in value]
    assert caches, "engines are kept there where the bundle cannot be written to"


def test_the_runtime_answers_what_the_unit_asks_of_it(unit: dict[str, list[str]]) -> None:
    """Readiness, watchdog, reload and stop, held against the numbers of the runtime."""
    from mdeq_runtime import pipeline
    from mdeq_runtime.sources.live import Patience

    assert unit["Type"] == ["notify"], "JetPack 6 has systemd 249, which lacks notify-reload"
    assert unit["NotifyAccess"] == ["main"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    (watchdog,) = unit["WatchdogSec"]
    assert float(watchdog) / 2 > Patience().silent_s, "a camera's silence is noticed before"
    assert float(unit["TimeoutStopSec"][0]) > 2.0 > pipeline.DRAIN_S


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = shutil.which("true") or "/bin/true"
    text = UNIT.read_text().replace("/opt/edge-mdeq/current/bin/edge-mdeq", program)
    (tmp_path / UNIT.name).write_text(text)
    name = str(tmp_path / "edge-mdeq@front.service")
    done = subprocess.run(["systemd-analyze", "verify", name], capture_output=True, text=True)
    said = [
        line
        for line in done.stderr.splitlines()
        if UNIT.name.split("@")[0] in line and not any(f"'{key}'" in line for key in LATER)
    ]
    assert not said


def test_the_image_is_made_of_files_that_are_there_and_options_that_are_known(
    install: Install, jetson: Callable[..., Path], tmp_path: Path
) -> None:
    text = (KIT / "Containerfile").read_text().replace("\\\n", " ")
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert {"pyproject.toml", "edge_mdeq", "export", "runtime"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    command = re.search(r"install\.sh ([^&]*)&&", text)
    assert command
    options = shlex.split(command[1].replace("${JETPACK}", "6"))
    done = install(jetson(None), *options, "--prefix", tmp_path / "opt", "--dry-run")
    assert done.returncode == 0, done.stderr
    entry = re.search(r'^ENTRYPOINT \["(.*)"\]$', text, re.M)
    assert entry
    assert entry[1] == "/opt/edge-mdeq/current/bin/edge-mdeq"
