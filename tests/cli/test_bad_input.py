"""Every bad input of every verb: one message, an exit code, and nothing lost or half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data import VOID, write_camvid, write_image

COMMAND = [sys.executable, "-m", "edge_mdeq.cli"]
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def call(
    cwd: Path, *arguments: str | Path, file_limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command; ``file_limit`` bytes in a file stand in for a disk that fills up."""
    limit = [] if file_limit is None else [sys.executable, "-c", LIMITED, str(file_limit)]
    return subprocess.run(
        [*limit, *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """The same within this process, which imports torch only once."""

    def call_main(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        from edge_mdeq.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["edge-mdeq", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return subprocess.CompletedProcess(sys.argv, int(stop.value.code or 0), *capfd.readouterr())

    return call_main


def assert_one_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]  # progress
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]


def picture(seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (96, 64)))


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for index in range(frames):
        writer.write(picture(index))
    writer.release()
    return path


def frames_in(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.grab():
        count += 1
    return count


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Weights, config, image size: export


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickle(path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(3)}, path)


def foreign(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(8, 3, 3, 3)}, path)


def foreign_alone(path: Path) -> None:
    foreign(path)
    path.with_suffix(".json").unlink()


def config(change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        card = path.with_suffix(".json")
        text = card.read_text()
        assert change(text) != text
        card.write_text(change(text))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "weights file w.safetensors does not exist"),
        (cut, "is not a readable safetensors file, or is truncated"),
        (empty, "is not a readable safetensors file, or is truncated"),
        (pickle, "is not a readable safetensors file, or is truncated"),
        (foreign, "w.safetensors does not match its config w.json: missing "),
        (foreign_alone, "cannot read the model config w.json"),  # ours know their card
        (config(lambda text: text[: len(text) // 2]), "w.json: not valid JSON"),
        (config(lambda text: "[]"), "w.json: Expected `object`, got `array`"),
        (config(lambda text: text.replace('"expansion": 1', '"expansion": 2')), "config says"),
        (config(lambda text: text.replace('"expansion": 1', '"expansion": "1"')), "$.model.exp"),
        (config(lambda text: text.replace('"classes": 4', '"classes": 5')), "labels has 4 entries"),
    ],
)
def test_weights_that_cannot_be_exported(
    segmenter_weights: Path,
    tmp_path: Path,
    call_here: Call,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    weights = tmp_path / "w.safetensors"
    shutil.copy(segmenter_weights, weights)
    shutil.copy(segmenter_weights.with_suffix(".json"), tmp_path / "w.json")
    spoil(weights)
    before = contents(tmp_path)
    assert_one_error(call_here("export", "w.safetensors", "-o", "x.mdeq", "-q"), message)
    assert contents(tmp_path) == before
    assert not (tmp_path / "x.mdeq").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--imgsz", "60", "96"], "image height 60 is not a multiple of the model's stride 16"),
        (["--imgsz", "0", "96"], "input size 0x96 is not positive"),
        (["--imgsz", "99999984", "99999984"], "out of memory"),
        (["--iterations", "999"], "iterations 999 is not in 1..256"),
        (["--data", "nowhere"], "nowhere does not exist; give a folder of images"),
        (["--f-solver", "andersen"], "did you mean 'anderson'?"),
        (["--f-solver", "auot"], "did you mean 'auto'?"),
        (["--f-solver", "fp"], "unknown solver 'fp'; known: fixed_point, anderson, broyden, auto"),
        (["--target", "ort-cpu", "tensort-10"], "did you mean 'tensorrt-10'?"),
        (
            ["--target", "ort-cpu", "trt-10"],
            "unknown target 'trt-10' (did you mean 'tensorrt-10'?)",
        ),
        (["--target", "ort-cpu", "trt", "cuda"], "-11' or 'tensorrt-rtx'?), 'cuda' (did you mean"),
        (
            ["--target", "ort-cpu", "xyz", "--half"],
            "unknown target 'xyz'; known: ort-cpu, ort-cuda",
        ),
        (["--f-solver", "auto", "--f-tol", "0"], "f_tol is 0, must be in (0, 1)"),
        (["--f-solver", "auto", "--max-metric-drop", "5"], "max_metric_drop is 5, must be a share"),
        (["--rtol", "-1"], "rtol is -1, must be in [0, 1), such as 1e-4"),
        (["--atol", "-1"], "atol is -1, must be 0 or positive"),
        (["--atol", "nan"], "atol is nan, must be 0 or positive"),
        (["--min-agreement", "1.5"], "min_agreement is 1.5, must be a share in [0, 1]"),
        (["--tau", "nan"], "tau is nan, must be in (0, 1]"),
        (["--f-solver", "anderson", "--f-tol", "1e-3"], "with 'anderson' leave them out"),
        (["-o", "x"], "x must end in .mdeq"),
        (["-o", "/proc/x.mdeq"], "cannot write to /proc"),
        (["-o", "old.mdeq"], "old.mdeq already exists; replace it with --force"),
    ],
)
def test_exports_that_cannot_be_done(
    segmenter_weights: Path, tmp_path: Path, call_here: Call, options: list[str], message: str
) -> None:
    (tmp_path / "old.mdeq").mkdir()
    (tmp_path / "old.mdeq" / "precious").write_text("precious")
    done = call_here("export", segmenter_weights, "-o", "x.mdeq", "-q", *options)
    assert_one_error(done, message)
    assert contents(tmp_path) == {"old.mdeq/precious": b"precious"}
    assert [path.name for path in tmp_path.iterdir()] == ["old.mdeq"]


def test_a_tolerance_that_no_solver_reaches(
    classifier_weights: Path, segmenter_bundle: Path, tmp_path: Path, call_here: Call
) -> None:
    for k in range(2):
        write_image(tmp_path / "pictures" / f"{k}.png", picture(k))
    shutil.copytree(segmenter_bundle, tmp_path / "old.mdeq")
    before = contents(tmp_path)
    done = call_here(
        "export", classifier_weights, "-o", "old.mdeq", "--force", "-q", "--f-solver", "auto",
        "--f-tol", "1e-12", "--data", "pictures",
    )  # fmt: skip
    assert_one_error(done, "no solver meets a residual of 1e-12 within 26 evaluations; ")
    assert "spectral radius" in done.stderr
    assert "`edge-mdeq tune`" in done.stderr
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_during_an_export(
    segmenter_weights: Path, segmenter_bundle: Path, own_copy: Callable[[Path], Path]
) -> None:
    old = own_copy(segmenter_bundle)
    before = contents(old.parent)
    done = call(
        old.parent, "export", segmenter_weights, "-o", old, "--force", "-q", file_limit=40_000
    )
    assert_one_error(done, f"cannot write {old}: File too large")
    assert contents(old.parent) == before, "the old bundle stays, and nothing beside it"


@pytest.mark.parametrize(
    ("limit", "message"),
    [(100, "measurements.json: File too large"), (40_000, "cannot write the report of ")],
)
def test_a_disk_that_fills_up_while_figures_are_kept(
    segmenter_bundle: Path,
    own_copy: Callable[[Path], Path],
    tmp_path: Path,
    limit: int,
    message: str,
) -> None:
    data = write_camvid(tmp_path / "camvid")
    bundle = own_copy(segmenter_bundle)
    before = contents(bundle)
    done = call(
        tmp_path, "val", bundle, "--data", data, "--ignore", VOID, "--iterations", "1", "-q",
        "--report", file_limit=limit,
    )  # fmt: skip
    assert_one_error(done, message)
    after = contents(bundle)
    after.pop("measurements.json"), before.pop("measurements.json")
    assert after == before


# Bundles: run and inspect


def flip(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        raw = bytearray((bundle / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (bundle / name).write_bytes(raw)

    return spoil


def newer(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest |= {"schema": 99, "created_by": "edge-mdeq 9.0", "unheard_of": [1, 2]}
    path.write_text(json.dumps(manifest))


WEIGHTS, GRAPH = "graphs/ort-cpu/weights-fp32.bin", "graphs/ort-cpu/solve-k2.onnx"


@pytest.mark.parametrize("verb", ["run", "inspect"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "b.mdeq does not exist"),
        (flip(WEIGHTS), "weights-fp32.bin does not have the SHA-256"),
        (flip(GRAPH), "solve-k2.onnx does not have the SHA-256"),
        (lambda bundle: cut(bundle / WEIGHTS), "bytes, the manifest says"),
        (lambda bundle: (bundle / WEIGHTS).unlink(), "weights-fp32.bin is missing"),
        (lambda bundle: (bundle / GRAPH).unlink(), "solve-k2.onnx is missing"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "is not a bundle"),
        (lambda bundle: cut(bundle / "manifest.json"), "is not valid JSON"),
        (newer, "reads up to 1; install edge-mdeq 9.0 or later: pip install"),
    ],
)
def test_bundles_that_cannot_be_used(
    segmenter_bundle: Path,
    tmp_path: Path,
    verb: str,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    bundle = Path(shutil.copytree(segmenter_bundle, tmp_path / "b.mdeq"))
    spoil(bundle)
    write_video(tmp_path / "clip.avi", 2)
    before = contents(tmp_path)
    outputs = ["clip.avi", "out.mp4", "--output", "out.jsonl"] if verb == "run" else []
    assert_one_error(call(tmp_path, verb, "b.mdeq", *outputs), message)
    assert contents(tmp_path) == before


# Sources


def test_a_video_that_is_none_is_refused_without_a_word_of_ffmpeg(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "clip.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    done = call(tmp_path, "run", segmenter_bundle, "clip.mp4", "out.mp4")
    assert_one_error(done, "cannot be opened as a video")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_video_that_was_cut_off_is_answered_as_far_as_it_goes(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    cut(write_video(tmp_path / "clip.avi", 40))
    done = call(tmp_path, "run", segmenter_bundle, "clip.avi", "out.mp4", "--iterations", "1")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: video file clip.avi ended after ")
    assert done.stderr.count("\n") == 1
    assert 0 < frames_in(tmp_path / "out.mp4") < 40


GREY = picture()[..., 0]
DEEP = picture().astype(np.uint16) * 256


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GREY, "it is grey; convert with"),
        (DEEP, "it is a 16-bit image; scale it to 8 bits"),
        (np.dstack([picture(), GREY]), "it has an alpha channel"),
        (None, "cannot be decoded as an image"),
    ],
    ids=["grey", "16 bits", "alpha", "damaged"],
)
def test_a_frame_of_a_wrong_kind_in_the_middle_of_a_run(
    segmenter_bundle: Path, tmp_path: Path, image: np.ndarray | None, message: str
) -> None:
    """What was answered before it is kept: a video that plays, and whole lines."""
    (tmp_path / "in").mkdir()
    for index in range(3):
        cv2.imwrite(f"{tmp_path}/in/{index}.png", picture(index))
    if image is None:
        (tmp_path / "in" / "3.png").write_bytes(b"no picture")
    else:
        cv2.imwrite(f"{tmp_path}/in/3.png", image)
    done = call(
        tmp_path, "run", segmenter_bundle, "in", "out.mp4", "--output", "out.jsonl", "--output",
        "masks/", "--iterations", "1",
    )  # fmt: skip
    assert_one_error(done, message)
    assert frames_in(tmp_path / "out.mp4") == 3
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]
    assert len(list((tmp_path / "masks").iterdir())) == 3


@pytest.mark.parametrize("image", [GREY, DEEP], ids=["grey", "16 bits"])
def test_a_first_frame_of_a_wrong_kind_leaves_old_outputs_alone(
    segmenter_bundle: Path, tmp_path: Path, image: np.ndarray
) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), image)
    for name in ("out.mp4", "out.jsonl"):
        (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    done = call(tmp_path, "run", segmenter_bundle, "in.png", "out.mp4", "--output", "out.jsonl")
    assert_one_error(done, "frame 0 of image in.png")
    assert contents(tmp_path) == before


# Outputs of run


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["clip.avi"], "is the source itself"),
        (["new.mp4", "--output", "./new.mp4"], "is given twice"),
        (["old.jsonl", "--output", "/proc/out.mp4"], "cannot write into /proc"),
        (["old.jsonl", "--output", "clip.avi/out.mp4"], "cannot make the output folder clip.avi"),
        (["old.jsonl", "--output", "folder"], "output folder is a folder; write folder/"),
    ],
)
def test_outputs_that_cannot_be_written(
    segmenter_bundle: Path, tmp_path: Path, outputs: list[str], message: str
) -> None:
    write_video(tmp_path / "clip.avi", 3)
    (tmp_path / "old.jsonl").write_text("precious")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    assert_one_error(call(tmp_path, "run", segmenter_bundle, "clip.avi", *outputs), message)
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_during_a_run(segmenter_bundle: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 40)
    done = call(
        tmp_path, "run", segmenter_bundle, "clip.avi", "out.jsonl", "--iterations", "1",
        file_limit=4000,
    )  # fmt: skip
    assert_one_error(done, "cannot write out.jsonl (the disk is full)")
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) > 5
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    assert lines[-1].endswith("\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi", "out.jsonl"]
