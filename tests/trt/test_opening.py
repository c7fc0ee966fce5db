"""Where engines cannot run that is found at once, said, and something else runs."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import BundleError, DeviceError, EngineError, MissingExtraError
from mdeq_runtime import Model
from mdeq_runtime.backends.nvidia import CudaDevice
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.tensorrt import opening
from mdeq_runtime.tensorrt.engines import EngineStore
from mdeq_runtime.tensorrt.identity import identify
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Release

GPU = CudaDevice(0, "Orin", (8, 7), 12060)
RELEASE = Release((10, 3, 0), False)
POLICY = (FixedIterations(2),)


@pytest.fixture
def bundle(plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return open_bundle(Path(shutil.copytree(plain.path, tmp_path / "own.mdeq")))


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU, TensorRT 10.3 and a pycuda that must not be imported before it is needed."""
    monkeypatch.setattr(opening, "find_device", lambda: GPU)
    monkeypatch.setattr("mdeq_runtime.tensorrt.identity.find_device", lambda: GPU)
    monkeypatch.setattr(opening, "find_release", lambda: RELEASE)
    (tmp_path / "site" / "pycuda").mkdir(parents=True)
    (tmp_path / "site" / "pycuda" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def put(bundle: Bundle, release: Release, graph: str) -> Path:
    profile = bundle.profile(release.profile)
    store = EngineStore(bundle, release.profile, identify(release, profile, BuildSettings()))
    path = store.path(graph)
    path.write_bytes(b"a plan")
    store.record(graph, path, {}, {})
    return path


def test_without_a_driver_that_is_the_reason(bundle: Bundle) -> None:
    try:
        opening.find_device()
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match="no NVIDIA driver was found"):
        opening.open_engines(bundle, POLICY, True)


def test_tensorrt_without_pycuda(
    bundle: Bundle, jetson: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"TensorRT 10.3.0 is here, but pycuda.*\[tensorrt"):
        opening.open_engines(bundle, POLICY, True)


def test_pycuda_without_tensorrt(
    bundle: Bundle, jetson: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(opening, "find_device", lambda: GPU)
    monkeypatch.setattr("mdeq_runtime.tensorrt.versions.installed", lambda names: ())
    with pytest.raises(MissingExtraError, match="TensorRT is not installed: on a Jetson"):
        opening.open_engines(bundle, POLICY, True)


def test_a_bundle_for_another_tensorrt(bundle: Bundle, jetson: None) -> None:
    manifest = bundle.path / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["profiles"]["tensorrt-10"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="no graphs for 'tensorrt-10'"):
        opening.open_engines(open_bundle(bundle.path), POLICY, True)


def test_a_bundle_without_engines(bundle: Bundle, jetson: None) -> None:
    with pytest.raises(EngineError, match=f"has no engines.*edge-mdeq engine {bundle.path}"):
        opening.open_engines(bundle, POLICY, True)


def test_engines_of_another_version(
    bundle: Bundle, jetson: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bundle, RELEASE, "graphs/ort-cpu/solve-k2.onnx")
    monkeypatch.setattr(opening, "find_release", lambda: Release((10, 13, 3), False))
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0, here 10.13.3"):
        opening.open_engines(bundle, POLICY, True)


def test_engines_for_another_policy(bundle: Bundle, jetson: None) -> None:
    put(bundle, RELEASE, "graphs/ort-cpu/solve-k1.onnx")
    with pytest.raises(EngineError, match=r"solve-k2.onnx has no engine"):
        opening.open_engines(bundle, POLICY, True)


DECIDE = """
import sys, time, json
from pathlib import Path
from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime.backends.nvidia import CudaDevice
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.tensorrt import identity, opening, versions

bundle, case = open_bundle(Path(sys.argv[1])), sys.argv[2]
if case != "no driver":
    gpu = lambda: CudaDevice(0, "Orin", (8, 9), 12060)
    opening.find_device = identity.find_device = gpu
if case == "no tensorrt":
    versions.installed = lambda names: ()
started = time.perf_counter()
try:
    opening.open_engines(bundle, (FixedIterations(2),), True)
except EdgeMdeqError as error:
    took = time.perf_counter() - started
    heavy = ("tensorrt", "tensorrt_rtx", "pycuda", "onnxruntime", "torch")
    print(json.dumps([took, str(error), [name for name in heavy if name in sys.modules]]))
"""


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no driver", "no NVIDIA driver"),
        ("no tensorrt", "TensorRT is not installed"),
        ("wrong fingerprint", "compute capability 8.6, here 8.9"),
    ],
)
def test_the_decision_takes_less_than_50_ms_and_imports_nothing(
    bundle: Bundle, tmp_path: Path, case: str, reason: str
) -> None:
    packages = tmp_path / "site"
    for name in ("tensorrt_rtx", "pycuda"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text("raise SystemExit('imported')")
    (packages / "tensorrt_rtx-1.7.1.116.dist-info").mkdir()
    release = Release((1, 7, 1), True)
    profile = bundle.profile("tensorrt-rtx")
    built = identify(release, profile, BuildSettings(capabilities=("SM86",)))
    store = EngineStore(bundle, "tensorrt-rtx", built)
    graph = "graphs/ort-cpu/solve-k2.onnx"
    store.path(graph).write_bytes(b"a plan")
    store.record(graph, store.path(graph), {}, {})
    took = []
    for _ in range(10):  # on a busy machine
        done = subprocess.run(
            [sys.executable, "-c", DECIDE, str(bundle.path), case],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(packages), "HOME": str(tmp_path)},
        )
        seconds, said, imported = json.loads(done.stdout)
        assert reason in said
        assert imported == []
        took.append(seconds)
        if seconds < 0.05:
            break
    assert took[-1] < 0.05, took


def test_frames_are_answered_all_the_same_and_the_log_says_why(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    with caplog.at_level(logging.WARNING), Model(bundle.path) as model:
        assert model(frame).output.shape == (64, 96)
    assert "not running on TensorRT:" in caplog.text
    assert model.profile in ("ort-cpu", "ort-cuda")


def test_a_bundle_that_is_not_for_tensorrt_is_not_complained_of(
    segmenter_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Model(segmenter_bundle):
        assert "TensorRT" not in caplog.text


def test_the_command_line_builds_and_says_what_it_built(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edge-mdeq[tensorrt-rtx]'")
    command = [sys.executable, "-m", "edge_mdeq.cli", "engine", str(bundle.path)]
    target = ["--compute-capability", "sm86"]
    done = subprocess.run([*command, *target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for graph in needed_names():
        assert f"{graph}: " in done.stdout
    assert f"next: edge-mdeq run {bundle.path} 0 --device tensorrt" in done.stdout
    again = subprocess.run([*command, *target], capture_output=True, text=True)
    assert again.stdout.count("is there, and fits") == len(needed_names())
    parts = subprocess.run([*command, *target, "--in-parts"], capture_output=True, text=True)
    assert f"next: edge-mdeq run {bundle.path} 0 --device tensorrt --tolerance 0.05" in parts.stdout
    nowhere = ["--timing-cache", str(tmp_path / "no" / "timings")]
    early = subprocess.run([*command, *target, *nowhere], capture_output=True, text=True)
    assert early.returncode == 1
    assert "--timing-cache" in early.stderr
    wrong = subprocess.run(
        [*command, "--compute-capability", "SM87"], capture_output=True, text=True
    )
    assert wrong.returncode == 1
    assert "no 'SM87'" in wrong.stderr
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), np.zeros((64, 96, 3), np.uint8))
    run = [sys.executable, "-m", "edge_mdeq.cli", "run", str(bundle.path), str(picture), "none"]
    fallen = subprocess.run(run, capture_output=True, text=True)
    assert fallen.returncode == 0
    assert "warning: not running on TensorRT:" in fallen.stderr


def needed_names() -> list[str]:
    return ["inject", "readout", "advance-k1", "solve-k2"]
