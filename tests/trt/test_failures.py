"""Engines on the device: what is said where they cannot be loaded or run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from doubles import TensorRT
from playing import FRAMES, session
from tensorrt_models import engine_bytes

from edge_mdeq.bundle import Bundle
from edge_mdeq.errors import (
    BundleError,
    DeviceError,
    EngineError,
    MemoryLimitError,
    MissingExtraError,
    SessionError,
)
from mdeq_runtime import FixedIterations
from mdeq_runtime.backends import nvidia
from mdeq_runtime.tensorrt.backend import TensorRTBackend
from mdeq_runtime.tensorrt.versions import flavour_of

Open = Callable[..., Any]
TWO = FixedIterations(2)
PROFILE = "tensorrt-10"
RUN = "IExecutionContext.execute_async_v3"
LOAD = "Runtime.deserialize_cuda_engine"


def rungs(bundle: Bundle) -> list[str]:
    return [rung.graph for rung in bundle.profile(PROFILE).rungs]


SPOILT = ("truncated", "altered", "empty", "missing", "of another version")


@pytest.fixture(autouse=True)
def new_driver(gpu: fake_cuda.Gpu) -> None:
    """One that is new enough for every TensorRT."""
    nvidia._driver().version = 13000  # type: ignore[attr-defined]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_bad_engine_is_named_and_the_others_work(
    spoil: str, plain: Bundle, double: TensorRT, open_backend: Open, engines: Any, tmp_path: Path
) -> None:
    good, bad, _ = rungs(plain)
    path = tmp_path / "bad.engine"
    plan = engine_bytes(double.version, plain.path / bad)
    path.write_bytes(
        {
            "truncated": plan[:-40],
            "altered": plan.replace(b"4096", b"4097"),
            "of another version": engine_bytes("9.9.9", plain.path / bad),
        }.get(spoil, b"")
    )
    if spoil == "missing":
        path.unlink()
    written = engines(plain, double)
    backend = open_backend(
        plain, double, engine_of=lambda graph: path if graph == bad else written(graph)
    )
    taken = backend.device_bytes()
    with pytest.raises(EngineError, match="edge-mdeq engine") as refused:
        backend.load(bad)
    assert str(path) in str(refused.value)
    assert backend.device_bytes() == taken
    backend.load(good)


def test_an_engine_of_another_graph_is_not_run(
    plain: Bundle, ten: TensorRT, open_backend: Open, tmp_path: Path
) -> None:
    manifest = plain.manifest
    wide = replace(manifest.residual, shape=(2,))
    other = replace(plain, manifest=replace(manifest, residual=wide))

    def engine_of(graph: str) -> Path:
        path = tmp_path / "engine"
        path.write_bytes(engine_bytes(ten.version, plain.path / graph))
        return path

    backend = open_backend(other, ten, engine_of=engine_of)
    with pytest.raises(EngineError, match="another graph") as refused:
        backend.load(rungs(plain)[0])
    assert "residual" in str(refused.value)


def test_a_run_that_fails_is_the_frames_error_and_the_next_starts_cold(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten, graphs=False)
    with session(backend, plain, PROFILE, TWO) as stream:
        stream(FRAMES[0])
        ten.fail[RUN] = "Cask convolution execution"
        with pytest.raises(SessionError, match=r"solve-k2.*Cask convolution"):
            stream(FRAMES[0])
        del ten.fail[RUN]
        after = stream(FRAMES[0])
        assert not after.warm
        assert stream(FRAMES[0]).warm


def test_a_gpu_that_broke_ends_in_errors_and_still_closes(
    plain: Bundle,
    ten: TensorRT,
    engines: Any,
    gpu: fake_cuda.Gpu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = TensorRTBackend(plain, flavour_of(ten.module), engines(plain, ten))
    state = backend.new_state()
    gpu.broken = "an illegal memory access was encountered"
    for _ in range(2):
        with pytest.raises(SessionError, match="illegal memory access"):
            backend.run(plain.profile(PROFILE).rungs[0], FRAMES[0], state)
    backend.close()
    assert not backend.device.worker.thread.is_alive()


def test_memory_that_tensorrt_does_not_get_is_a_matter_of_memory(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten)
    ten.fail["ICudaEngine.create_execution_context"] = "Cuda Runtime (out of memory)"
    with pytest.raises(MemoryLimitError, match="out of memory"):
        backend.load(rungs(plain)[0])


def test_a_driver_that_tensorrt_finds_too_old_is_no_matter_of_the_engine(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten)
    ten.fail["Runtime.deserialize_cuda_engine"] = "CUDA driver version is insufficient"
    with pytest.raises(DeviceError, match="update the driver") as refused:
        backend.load(rungs(plain)[0])
    assert not isinstance(refused.value, EngineError)


def test_without_a_driver_no_runtime_is_made(
    plain: Bundle, ten: TensorRT, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise DeviceError("no NVIDIA driver was found")

    ten.has_device = False  # a runtime would take the process down
    monkeypatch.setattr(nvidia, "_driver", missing)
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        TensorRTBackend(plain, flavour_of(ten.module), engines(plain, ten))
    assert not ten.calls


def test_a_driver_that_is_too_old_is_told_before_a_runtime_is_made(
    double: TensorRT, plain: Bundle, open_backend: Open, gpu: fake_cuda.Gpu
) -> None:
    nvidia._driver().version = 10020  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match=r"driver for CUDA 1\d or later, this one is for 10.2"):
        open_backend(plain, double)
    assert double.count("Runtime") == 0
    assert gpu.retained == 0


def test_without_pycuda_it_is_said_what_to_install(
    plain: Bundle, ten: TensorRT, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingExtraError, match=r"edge-mdeq\[tensorrt\]"):
        open_backend(plain, ten)


def test_a_bundle_for_batches_is_refused(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    manifest = plain.manifest
    tensor = replace(manifest.input.tensor, shape=(4, *manifest.input.tensor.shape[1:]))
    batched = replace(manifest, input=replace(manifest.input, tensor=tensor))
    with pytest.raises(BundleError, match="batches of 4"):
        open_backend(replace(plain, manifest=batched), ten)
