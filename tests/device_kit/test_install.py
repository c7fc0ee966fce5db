"""What the device kit's script really installs, and what it leaves of what was there before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

KIT = Path(__file__).parents[2] / "runtime" / "device"
Install = Callable[..., "subprocess.CompletedProcess[str]"]
Jetson = Callable[..., Path]


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """What lies in a folder, and when it was last written. What Python compiled is left out."""
    return {
        str(path.relative_to(folder)): (
            status.st_ino,
            0 if path.is_dir() else status.st_mtime_ns,
            os.readlink(path) if path.is_symlink() else "",
        )
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
        for status in [path.lstat()]
    }


@dataclass(frozen=True)
class Board:
    """A made-up Jetson on which edge-mdeq was installed once."""

    root: Path
    prefix: Path
    options: tuple[str, ...]
    output: str

    def run(self, environ: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
        """A command of the current environment."""
        program = str(self.prefix / "current/bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], env=environ, cwd=self.root, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def board(
    jetson: Jetson,
    install: Install,
    package: Path,
    wheels: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Board:
    root, prefix = jetson(6), tmp_path_factory.mktemp("opt")
    options = ("--prefix", str(prefix), "--wheel", str(package), "--wheels", str(wheels))
    done = install(root, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return Board(root, prefix, options, done.stdout)


def test_it_ends_with_the_doctor_and_names_the_next_commands(board: Board) -> None:
    command = board.prefix / "current/bin/edge-mdeq"
    assert "bundles run here (cpu)" in board.output
    assert f"next: {command} engine" in board.output
    assert f"then: {command} run" in board.output


def test_the_environment_uses_the_systems_opencv(board: Board, environ: dict[str, str]) -> None:
    where = board.run(environ, "python", "-c", "import cv2; print(cv2.__file__)")
    assert where.stdout.startswith(environ["PYTHONPATH"]), where
    settings = (board.prefix / "current/pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in settings
    found = json.loads(board.run(environ, "edge-mdeq", "doctor", "--json").stdout)
    assert found["runs"]


def test_pip_cannot_hide_the_systems_opencv_later(
    board: Board, wheels: Path, environ: dict[str, str]
) -> None:
    command = [
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "--ignore-installed",
        "--find-links",
    ]
    wanted = ("python", *command, str(wheels), "opencv-python")
    refused = board.run(environ, *wanted)
    assert refused.returncode != 0
    assert "constraint" in refused.stdout + refused.stderr
    without = board.run(environ | {"PIP_CONFIG_FILE": os.devnull}, *wanted)
    assert "Would install opencv-python-99.0" in without.stdout, "the constraint is what refuses"


def test_numpy_stays_at_the_major_version_that_the_systems_modules_were_built_for(
    board: Board, environ: dict[str, str]
) -> None:
    numpy = board.run(environ, "python", "-c", "import numpy; print(numpy.__version__)").stdout
    limit = int(numpy.split(".")[0]) + 1
    assert f"numpy<{limit}\n" in (board.prefix / "current/constraints.txt").read_text()


def test_pycuda_is_built_with_the_boards_cuda(board: Board, environ: dict[str, str]) -> None:
    code = "import json, pycuda; print(json.dumps(pycuda.BUILT_WITH))"
    found = json.loads(board.run(environ, "python", "-c", code).stdout)
    assert found == {"nvcc": str(board.root / "usr/local/cuda/bin/nvcc"), "home": False}


def test_everyone_may_read_what_is_installed(board: Board) -> None:
    """A service runs as a user of its own."""
    closed = [
        path
        for path in (board.prefix / "current/").rglob("*")
        if not path.is_symlink() and not path.stat().st_mode & 0o004
    ]
    assert not closed


def test_a_second_run_changes_nothing(board: Board, install: Install) -> None:
    before = tree(board.prefix)
    done = install(board.root, *board.options)
    assert done.returncode == 0, done.stderr
    assert "installed already" in done.stdout
    assert "bundles run here" in done.stdout, "the doctor is asked all the same"
    assert tree(board.prefix) == before


def test_a_failure_in_the_midst_leaves_the_old_environment(
    board: Board, install: Install, wheels: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    torn = tmp_path / "edge_mdeq-99.0-py3-none-any.whl"
    torn.write_bytes(b"half a wheel")
    before = tree(board.prefix)
    done = install(board.root, *board.options, "--wheel", torn)
    assert done.returncode == 1
    assert "untouched" in done.stderr
    assert tree(board.prefix) == before
    assert board.run(environ, "edge-mdeq", "--version").returncode == 0


def test_a_signal_in_the_midst_leaves_the_old_environment(
    board: Board, environ: dict[str, str]
) -> None:
    before = tree(board.prefix)
    running = subprocess.Popen(
        ["sh", str(KIT / "install.sh"), *board.options, "--force"],
        env=environ | {"EDGE_MDEQ_ROOT": str(board.root)},
        cwd=board.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + 180
    while len(list((board.prefix / "environments").glob("*/pyvenv.cfg"))) < 2:
        assert running.poll() is None, "it ended before it made an environment"
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(180) != 0
    assert tree(board.prefix) == before


def test_an_update_keeps_the_last_environment_and_no_older_ones(
    board: Board, install: Install, environ: dict[str, str]
) -> None:
    """Last in this file: what it leaves is another environment."""
    old = os.readlink(board.prefix / "current")
    killed = board.prefix / "environments/of-a-killed-run"
    killed.mkdir()
    done = install(board.root, *board.options, "--extras", "onnxruntime")
    assert done.returncode == 0, done.stdout + done.stderr
    new = os.readlink(board.prefix / "current")
    assert new != old
    assert os.readlink(board.prefix / "previous") == old
    left = {f"environments/{path.name}" for path in (board.prefix / "environments").iterdir()}
    assert left == {old, new}
    assert board.run(environ, "edge-mdeq", "--version").returncode == 0
    script = board.prefix / old / "bin/edge-mdeq"
    subprocess.run([str(script), "--version"], env=environ, check=True, capture_output=True)
