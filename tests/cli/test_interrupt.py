"""Ctrl-C, and what a service manager or a lost terminal sends, in the middle of every long verb."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.bundle import open_bundle

COMMAND = [sys.executable, "-m", "edge_mdeq.cli"]
WAIT_S = 120.0


def start(cwd: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=heed_signals,
    )


def heed_signals() -> None:
    """As in a terminal: a suite in the background, or under nohup, ignores some of them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def interrupt(
    process: subprocess.Popen[str],
    when: Callable[[], bool],
    number: signal.Signals = signal.SIGINT,
    times: int = 1,
) -> str:
    """Send a signal as soon as ``when()``; what the command said on stderr."""
    try:
        wait_until(when, process)
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.01)
        _, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error: interrupted; " in err.splitlines()[-1]
    return err


def wait_until(when: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"nothing to interrupt within {WAIT_S:g} s"
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Run


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(4000):
        writer.write(np.asarray(cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), (96, 64))))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("number", "times"),
    [(signal.SIGINT, 1), (signal.SIGINT, 5), (signal.SIGTERM, 1), (signal.SIGHUP, 1)],
    ids=["Ctrl-C", "an impatient Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_a_run_ends_with_whole_files(
    segmenter_bundle: Path, long_clip: Path, tmp_path: Path, number: signal.Signals, times: int
) -> None:
    process = start(
        tmp_path, "run", segmenter_bundle, long_clip, "out.mp4", "--output", "out.jsonl",
        "--output", "masks/", "--cold", "64", "--warm", "0",
    )  # fmt: skip
    err = interrupt(process, lambda: lines_in(tmp_path / "out.jsonl") >= 3, number, times)
    assert err == "error: interrupted; what was written until then is finished\n"
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["index"] for line in written] == list(range(len(written)))
    assert 3 <= len(written) < 4000
    video, shapes = cv2.VideoCapture(str(tmp_path / "out.mp4")), []
    while True:
        done, image = video.read()
        if not done:
            break
        shapes.append(image.shape)
    assert abs(len(shapes) - len(written)) <= 1, "the sinks may be a frame apart"
    assert set(shapes) == {(64, 96, 3)}
    masks = sorted((tmp_path / "masks").iterdir())
    assert abs(len(masks) - len(written)) <= 1
    assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None for path in masks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "out.jsonl", "out.mp4"]


def test_a_run_under_nohup_outlives_its_terminal(segmenter_bundle: Path, long_clip: Path) -> None:
    process = subprocess.Popen(
        ["nohup", *COMMAND, "run", str(segmenter_bundle), str(long_clip), "--max-frames", "300"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("segmenter on ")
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "300 frames" in out


# Export


@pytest.fixture
def export(classifier_weights: Path, tmp_path: Path) -> list[str | Path]:
    """The arguments of a quick export to ``x.mdeq``: one image to measure on."""
    pictures = tmp_path.parent / f"{tmp_path.name}-pictures"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "a.png"), np.random.default_rng(0).integers(0, 256, (32, 32, 3)))
    return [
        "export", classifier_weights, "-o", "x.mdeq", "--iterations", "1", "2", "--data", pictures,
        "-q",
    ]  # fmt: skip


def reached(folder: Path, name: str) -> Callable[[], bool]:
    """Whether an export of ``x.mdeq`` has come as far as writing the file ``name``."""
    return lambda: any(folder.glob(f".x.mdeq.*.tmp/new/{name}"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_export_leaves_nothing_behind(
    export: list[str | Path], tmp_path: Path, number: signal.Signals
) -> None:
    err = interrupt(start(tmp_path, *export), lambda: any(tmp_path.iterdir()), number)
    assert err == "error: interrupted; a bundle is written whole or not at all\n"
    assert not list(tmp_path.iterdir())


def test_an_impatient_ctrl_c_leaves_the_old_bundle(
    export: list[str | Path], segmenter_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(segmenter_bundle, tmp_path / "x.mdeq")
    before = contents(tmp_path)
    process = start(tmp_path, *export, "--force")
    interrupt(process, reached(tmp_path, "manifest.json"), times=3)
    assert contents(tmp_path) == before


def test_a_killed_export_leaves_the_old_bundle_and_the_next_one_tidies_up(
    export: list[str | Path], segmenter_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "x.mdeq"
    shutil.copytree(segmenter_bundle, bundle)
    before = contents(bundle)
    with start(tmp_path, *export, "--force") as process:
        try:
            wait_until(reached(tmp_path, "graphs/ort-cpu/solve-k1.onnx"), process)
        finally:
            process.kill()
    assert contents(bundle) == before
    assert len(list(tmp_path.iterdir())) == 2, "what it left"
    with start(tmp_path, *export, "--force") as process:
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    assert open_bundle(bundle, verify=True).manifest.task == "classification"
    assert [path.name for path in tmp_path.iterdir()] == ["x.mdeq"]


def test_an_unroll_leaves_the_bundle_as_it_was(segmenter_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(segmenter_bundle, tmp_path / "x.mdeq")
    before = contents(tmp_path)
    process = start(tmp_path, "unroll", "x.mdeq", "--iterations", "9", "11", "-q")
    err = interrupt(process, reached(tmp_path, "graphs/ort-cpu/solve-k9.onnx"), signal.SIGTERM)
    assert err == "error: interrupted; the bundle is whole, as it was or with all rungs\n"
    assert contents(tmp_path) == before


# Train

RECIPE = """
[model]
task = "segmentation"
classes = 2
channels = [8, 16]
expansion = 1
groups = 8

[input]
height = 32
width = 32

[data]
labels = ["dark", "bright"]
palette = [[0, 0, 0], [255, 255, 255]]

[optim]
epochs = 100000
batch = 2
"""


def write_dataset(root: Path) -> None:
    """Four images of noise in CamVid's layout, each with its bright half as class 1."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for index in range(4):
            image = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8)
            image[:, 20:] += 100
            mask = np.zeros((40, 40), np.uint8)
            mask[:, 20:] = 1
            cv2.imwrite(f"{root}/{split}/{index}.png", image)
            cv2.imwrite(f"{root}/{split}annot/{index}.png", mask)


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out, log = tmp_path / "out", tmp_path / "out" / "log.jsonl"
    command = ["train", "recipe.toml", "--data", "data", "--out", "out"]
    err = interrupt(start(tmp_path, *command), lambda: lines_in(log) >= 3)
    assert "error: interrupted; --resume goes on from the last checkpoint" in err
    assert (out / "checkpoint.pt").is_file()
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    assert not list(out.glob("*.safetensors")), "weights are what a finished run leaves"
    reached = lines_in(log)

    interrupt(start(tmp_path, *command, "--resume"), lambda: lines_in(log) >= reached + 3)
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1)), "no epoch is lost or logged twice"


# Before the work


@pytest.mark.parametrize("library", ["numpy", "onnxruntime", "cv2"])
def test_ctrl_c_while_libraries_load(segmenter_bundle: Path, tmp_path: Path, library: str) -> None:
    """The source is a pipe that nobody writes to, so that no run is over before the signal."""
    os.mkfifo(tmp_path / "clip.avi")
    process = start(tmp_path, "run", segmenter_bundle, "clip.avi", "out.mp4")
    maps = Path(f"/proc/{process.pid}/maps")
    interrupt(process, lambda: f"/{library}/" in maps.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["clip.avi"]
