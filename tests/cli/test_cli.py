"""The command as a user meets it: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge_mdeq
from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.manifest import encode_manifest

COMMAND = [sys.executable, "-m", "edge_mdeq.cli"]
VERBS = ("export", "import", "inspect", "run", "train")


def call(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )


def one_line(text: str) -> str:
    """Without the line breaks of boxes and narrow terminals."""
    return " ".join(text.split())


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        image = cv2.resize(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), (96, 64))
        writer.write(image)
    writer.release()
    return path


def frames_in(path: Path) -> list[tuple[int, ...]]:
    video = cv2.VideoCapture(str(path))
    shapes = []
    while True:
        ok, image = video.read()
        if not ok:
            return shapes
        shapes.append(image.shape)


# Help


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_there(verb: str) -> None:
    done = call(*([verb] if verb else []), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in VERBS if not verb else ["Usage", f"edge_mdeq.cli {verb}".split()[-1]]:
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["exprot"],
        ["inspect"],
        ["export", "w.safetensors"],
        ["run", "x.mdeq", "clip.avi", "--iterations", "0"],
        ["run", "x.mdeq", "clip.avi", "--iterations", "many"],
        ["inspect", "x.mdeq", "--colour"],
    ],
)
def test_misuse_is_exit_code_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


# Export and inspect


def test_export_takes_values_in_a_row_and_names_the_next_command(
    classifier_weights: Path, classifier_bundle: Path, tmp_path: Path
) -> None:
    done = call(
        "export", classifier_weights, "-o", "X.mdeq", "--iterations", "1", "2", "4", "-q",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2:] == ["wrote X.mdeq", "next: edge-mdeq inspect X.mdeq"]
    assert "export error" in done.stdout
    manifest = json.loads((tmp_path / "X.mdeq" / "manifest.json").read_text())
    counts = [rung["steps"][0]["evaluations"] for rung in manifest["profiles"]["ort-cpu"]["rungs"]]
    assert counts == [1, 2, 4]
    weights = Path("graphs") / "ort-cpu" / "weights-fp32.bin"
    assert (tmp_path / "X.mdeq" / weights).read_bytes() == (
        classifier_bundle / weights
    ).read_bytes()


def test_inspect_shows_what_a_user_asks_first(segmenter_bundle: Path) -> None:
    done = call("inspect", segmenter_bundle)
    assert done.returncode == 0, done.stderr
    for fact in (
        "segmenter", "segmentation, 4 classes", "road, sky, tree, car", "64 x 96", "fixed_point",
        "CC0-1.0", "solve-k1.onnx", "solve-k4.onnx", "export error", "solver gap",
        f"all {len(open_bundle(segmenter_bundle).manifest.files)} files have the hashes",
    ):  # fmt: skip
        assert fact in one_line(done.stdout), fact
    assert done.stdout.splitlines()[-1].startswith("next: edge-mdeq run ")


def test_inspect_json_is_the_manifest(segmenter_bundle: Path) -> None:
    done = call("inspect", segmenter_bundle, "--json")
    assert done.returncode == 0
    assert done.stdout == (segmenter_bundle / "manifest.json").read_text()


# Run


def test_run_writes_every_output(segmenter_bundle: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 6)
    done = call(
        "run", segmenter_bundle, "clip.avi", "out.mp4", "--output", "out.jsonl", "--output",
        "masks/", "--cold", "4", "--warm", "2", "--headless",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 frames" in done.stdout
    assert "wrote out.mp4 and out.jsonl and masks/" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: edge-mdeq run ")
    assert frames_in(tmp_path / "out.mp4") == [(64, 96, 3)] * 6
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    masks = sorted((tmp_path / "masks").iterdir())
    assert len(masks) == 6
    for path in masks:
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert mask.shape == (64, 96)
        assert mask.max() < 4


def test_run_json_is_one_object_that_counts_the_frames(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "clip.avi", 5)
    done = call(
        "run", segmenter_bundle, clip, "--iterations", "2", "--max-frames", "3", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 3
    assert summary["interrupted"] is False
    assert 0 <= summary["warm_share"] <= 2 / 3 + 1e-9
    assert {"fit", "solve", "restore", "read", "write"} <= set(summary["stages"])


def test_run_appends_metrics_to_a_file(segmenter_bundle: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.avi", 5)
    arguments = ("run", segmenter_bundle, clip, "--metrics", "m.jsonl", "--metrics-every", "1e-6")
    first = call(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "wrote m.jsonl" in first.stdout
    assert call(*arguments[:5], "--max-frames", "2", cwd=tmp_path).returncode == 0
    entries = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    counts = [count for count, _ in groupby(entry["frames"] for entry in entries)]
    assert counts[counts.index(1) :] == [1, 2, 3, 4, 5, 2], "lines come while no frame does, too"
    last = next(entry for entry in entries if entry["frames"] == 5)
    assert last["cold"]["first_frame"] == 1
    assert last["rss_bytes"] > 0


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["--tolerance", "1e-9", "--max-iterations", "3"], 3),
        (["--max-iterations", "3", "--tolerance", "1e9"], 1),
        (["--deadline-ms", "0.001"], 1),
        (["--deadline-ms", "60000", "--tolerance", "1e-9", "--max-iterations", "5"], 5),
        (["--warm", "0"], 4),
        (["--tolerance", "1e-9", "--max-iterations", "3", "--target-ms", "60000"], 3),
    ],
)
def test_run_stops_each_solve_as_its_options_say(
    segmenter_bundle: Path, tmp_path: Path, options: list[str], most: int
) -> None:
    clip = write_video(tmp_path / "clip.avi", 2)
    done = call("run", segmenter_bundle, clip, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean_iterations"] == most


FROZEN = """
import gc, sys
from edge_mdeq.cli import main
from mdeq_runtime import pipeline

at_work = pipeline.run
def run(*arguments, **options):
    print(gc.get_freeze_count(), file=sys.stderr)
    return at_work(*arguments, **options)
pipeline.run = run
main()
"""


def test_run_answers_frames_with_a_heap_that_the_garbage_collector_leaves_alone(
    segmenter_bundle: Path,
) -> None:
    arguments = ["run", str(segmenter_bundle), "test://96x64", "--max-frames", "2"]
    done = subprocess.run(
        [sys.executable, "-c", FROZEN, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[0]) > 10_000
    assert "2 frames" in done.stdout


def test_run_and_load_repeat_what_the_export_warned_of(
    segmenter_bundle: Path,
    own_copy: Callable[[Path], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = own_copy(segmenter_bundle)
    manifest = replace(open_bundle(bundle).manifest, warnings=("it does not converge",))
    (bundle / "manifest.json").write_bytes(encode_manifest(manifest))
    with edge_mdeq.load(bundle):
        assert caplog.messages == ["segmenter: it does not converge"]
    clip = write_video(tmp_path / "clip.avi", 1)
    done = call("run", bundle, clip, "--iterations", "1", "--json")
    assert done.returncode == 0
    assert done.stderr == "warning: segmenter: it does not converge\n"


WEIGHTS = Path(__file__).parents[2] / "samples" / "models" / "camvid-nano"
Refusal = Callable[[Path, Path], list[str | Path]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda b, d: ["run", b, "gone.avi"], "source gone.avi does not exist"),
        (lambda b, d: ["run", b, "ftp://x"], "unknown scheme 'ftp'"),
        (lambda b, d: ["run", "gone.mdeq", "clip.avi"], "bundle gone.mdeq does not exist"),
        (lambda b, d: ["run", b, "clip.avi", "/proc/nowhere/out.mp4"], "/proc/nowhere"),
        (lambda b, d: ["run", b, "clip.avi", "out.mp5"], "'.mp5'"),
        (lambda b, d: ["run", b, "clip.avi", "--fit", "strech"], "unknown fit 'strech'"),
        (
            lambda b, d: ["run", b, "clip.avi", "--iterations", "2", "--warm", "1"],
            "--iterations sets both",
        ),
        (
            lambda b, d: ["run", b, "clip.avi", "--warm", "1", "--deadline-ms", "33"],
            "--deadline-ms contradicts a fixed number",
        ),
        (lambda b, d: ["run", b, "clip.avi", "--deadline-ms", "0"], "must be positive"),
        (lambda b, d: ["run", b, "clip.avi", "--tolerance", "-1"], "must be positive"),
        (lambda b, d: ["run", b, "clip.avi", "--target-ms", "0"], "the target is"),
        (lambda b, d: ["inspect", d], "is not a bundle"),
        (lambda b, d: ["export", "gone.safetensors", "-o", "x.mdeq"], "does not exist"),
        (
            lambda b, d: ["export", WEIGHTS, "-o", "x.mdeq", "--iterations", "2", "999"],
            "iterations 999 is not in 1..256",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(
    segmenter_bundle: Path, tmp_path: Path, arguments: Refusal, message: str
) -> None:
    write_video(tmp_path / "clip.avi", 1)
    done = call(*arguments(segmenter_bundle, tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.avi"]


def test_iterations_that_no_rungs_make_are_refused(segmenter_bundle: Path, tmp_path: Path) -> None:
    """A bundle with a rung of two and no other; three cannot be made of it."""
    from edge_mdeq.bundle import writing_bundle

    manifest = json.loads((segmenter_bundle / "manifest.json").read_text())
    profile = manifest["profiles"]["ort-cpu"]
    profile["rungs"] = [r for r in profile["rungs"] if r["steps"][0]["evaluations"] == 2]
    with writing_bundle(tmp_path / "two.mdeq") as folder:
        for name in manifest["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((segmenter_bundle / name).read_bytes())
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert encode_manifest(open_bundle(tmp_path / "two.mdeq", verify=True).manifest)
    clip = write_video(tmp_path / "clip.avi", 1)
    done = call("run", tmp_path / "two.mdeq", clip, "--iterations", "3")
    assert done.returncode == 1
    assert "3 iterations cannot be made of the bundle's rungs (2)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_altered_bundle_is_refused_by_inspect(
    segmenter_bundle: Path, own_copy: Callable[[Path], Path]
) -> None:
    path = own_copy(segmenter_bundle)
    weights = path / "graphs" / "ort-cpu" / "weights-fp32.bin"
    raw = bytearray(weights.read_bytes())
    raw[100] ^= 1
    weights.write_bytes(raw)
    done = call("inspect", path)
    assert done.returncode == 1
    assert "does not have the SHA-256" in done.stderr


# Options that take several values


@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer's, as it is imported
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", ""),
        ("export w", "export w"),
        ("-n 1", "-n 1"),
        ("-n 1 2 3", "-n 1 -n 2 -n 3"),
        ("-n 1 -n 2 3", "-n 1 -n 2 -n 3"),
        ("-n 1 2 -o 3 4", "-n 1 -n 2 -o 3 4"),
        ("-n 1 out 5", "-n 1 out 5"),
        ("-n -o 5", "-n -o 5"),
        ("-n 1 -5", "-n 1 -5"),
        ("--size 64 96 -n 1 2", "--size 64 96 -n 1 -n 2"),
        ("1 2 3", "1 2 3"),
        ("-n 1 2.5 3", "-n 1 2.5 3"),
        ("-t a-1 b-2 c-3", "-t a-1 -t b-2 c-3"),
        ("-t a-1 2 -n 3 a-4", "-t a-1 2 -n 3 a-4"),
    ],
)
def test_a_greedy_option_is_repeated_before_further_values(given: str, expected: str) -> None:
    from edge_mdeq.cli.greedy import spread

    greedy = {"-n": str.isdecimal, "-t": lambda word: word[:2] in ("a-", "b-")}
    assert spread(given.split(), greedy) == expected.split()


@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer's, as it is imported
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        *(
            (name, True)
            for name in ("ort-cpu", "tensorrt-rtx", "trt-10", "trt", "TensorRT", "cuda")
        ),
        *((name, False) for name in ("-o", "--half", "w.safetensors", "gone/weights", "./weights")),
        ("weights", False),
        ("graphs", False),
    ],
)
def test_what_follows_a_target_is_one_unless_it_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, expected: bool
) -> None:
    from edge_mdeq.cli.export import is_target

    (tmp_path / "weights").touch()
    (tmp_path / "graphs").mkdir()
    (tmp_path / "ort-cpu").mkdir()  # what stands in graphs/ is no weights
    monkeypatch.chdir(tmp_path)
    assert is_target(argument) is expected
