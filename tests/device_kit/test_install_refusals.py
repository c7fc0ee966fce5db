"""What the device kit's script refuses, plans and leaves alone, on machines that are folders."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

KIT = Path(__file__).parents[2] / "runtime" / "device"
Install = Callable[..., "subprocess.CompletedProcess[str]"]
Jetson = Callable[..., Path]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("jetpack", [6, 7])
def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    jetpack: int, jetson: Jetson, install: Install, package: Path, tmp_path: Path
) -> None:
    root = jetson(jetpack)
    before = names(root)
    done = install(root, "--prefix", tmp_path / "opt", "--wheel", package, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"JetPack {jetpack}" in done.stdout
    assert f"{package}[onnxruntime,tensorrt]" in done.stdout
    assert "edge-mdeq doctor" in done.stdout
    assert "apt-get" not in done.stdout, "nothing is missing here"
    assert names(root) == before
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("without", "extras", "wanted"),
    [
        ("cv2", "onnxruntime,tensorrt", "nvidia-opencv"),
        ("tensorrt", "onnxruntime,tensorrt", "python3-libnvinfer"),
        ("nvcc", "tensorrt", "nvidia-jetpack"),
        ("tensorrt", "onnxruntime", None),
        ("nvcc", "onnxruntime", None),
    ],
)
def test_only_packages_that_are_missing_and_needed_are_asked_of_apt(
    without: str, extras: str, wanted: str | None, jetson: Jetson, install: Install, tmp_path: Path
) -> None:
    root = jetson(6, without=[without])
    done = install(root, "--prefix", tmp_path / "opt", "--extras", extras, "--dry-run")
    assert done.returncode == 0, done.stderr
    asked = [line.split(" install ")[1] for line in done.stdout.splitlines() if "apt-get" in line]
    assert asked == ([wanted] if wanted else [])


def test_other_machines_are_refused_with_what_to_do_instead(
    jetson: Jetson, install: Install, tmp_path: Path
) -> None:
    done = install(jetson(None), "--prefix", tmp_path / "opt")
    assert done.returncode == 1
    assert "not a Jetson" in done.stderr
    assert "pip install 'edge-mdeq[onnxruntime,camera]'" in done.stderr
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1", "JetPack 5 or older"),
        ("# R32 (release), REVISION: 7.6, GCID: 1", "flash JetPack 6 or 7"),
        ("# R52 (release), REVISION: 1.0, GCID: 1", "--jetpack 7"),
        ("nonsense", "does not say which release"),
        ("", "does not say which release"),
    ],
)
def test_other_jetpacks_are_refused_with_their_name(
    release: str, said: str, jetson: Jetson, install: Install, tmp_path: Path
) -> None:
    root = jetson(6)
    (root / "etc/nv_tegra_release").write_text(release)
    done = install(root, "--prefix", tmp_path / "opt")
    assert done.returncode == 1
    assert said in done.stderr
    assert not names(tmp_path)


def test_an_unknown_release_or_an_image_can_be_given_its_jetpack(
    jetson: Jetson, install: Install, tmp_path: Path
) -> None:
    later, image = jetson(6), jetson(None)
    (later / "etc/nv_tegra_release").write_text("# R52 (release), REVISION: 1.0\n")
    for root in (later, image):
        done = install(root, "--jetpack", "7", "--prefix", tmp_path / "opt", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "JetPack 7" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--frobnicate"], 2, "--frobnicate"),
        (["--prefix"], 2, "needs a value"),
        (["--wheel", ""], 2, "needs a value"),
        (["--jetpack", "5"], 2, "6 or 7"),
        (["--wheel", "missing.whl"], 1, "missing.whl"),
        (["--wheels", "missing"], 1, "not a folder"),
        (["--bundle", "missing.mdeq"], 1, "manifest.json"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], code: int, said: str, jetson: Jetson, install: Install, tmp_path: Path
) -> None:
    done = install(jetson(6), "--prefix", tmp_path / "opt", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert not names(tmp_path)


def test_a_place_that_cannot_be_written_to_is_refused_with_the_command_that_opens_it(
    jetson: Jetson, install: Install, package: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "opt"
    done = install(jetson(6), "--prefix", place, "--wheel", package)
    assert done.returncode == 1
    assert "sudo install -d -o" in done.stderr
    assert str(place) in done.stderr


def test_nothing_is_made_where_apt_fails(
    jetson: Jetson, install: Install, package: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """With an apt-get, and a sudo for those who are not root, that fail as without a network."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "sudo"):
        (tools / name).write_text("#!/bin/sh\necho 'Could not resolve host' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    root = jetson(6, without=["cv2"])
    path = f"{tools}:{environ['PATH']}"
    done = install(root, "--prefix", tmp_path / "opt", "--wheel", package, PATH=path)
    assert done.returncode == 1
    assert "apt-get failed" in done.stderr
    assert not (tmp_path / "opt").exists()


def test_a_second_installation_at_the_same_time_is_refused(
    jetson: Jetson, install: Install, package: Path, tmp_path: Path
) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = install(jetson(6), "--prefix", tmp_path, "--wheel", package)
    assert done.returncode == 1
    assert "another installation" in done.stderr
    assert names(tmp_path) == {".lock", "environments"}


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_every_posix_shell_reads_the_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(KIT / "install.sh")], check=True)


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(KIT / "install.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
