"""Which backend and profile a device means, what its absence says, and where engines are kept."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    MemoryLimitError,
    MissingExtraError,
)
from mdeq_runtime.backends import choose, nvidia
from mdeq_runtime.backends.choose import built_for_tensorrt, facts, open_backend
from mdeq_runtime.backends.engine_cache import EngineCache, engine_roots, open_engine_cache
from mdeq_runtime.backends.nvidia import CudaDevice, find_device, spell_version, tensorrt_version
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.backends.places import cuda, require_provider, tensorrt

FACTS = {"device": "Orin (nvgpu)", "tensorrt": "10.3.0", "onnxruntime": "1.23.2"}
ORIN = CudaDevice(0, "Orin", (8, 7), 12060)


def has_gpu() -> bool:
    try:
        find_device()
    except DeviceError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
needs_no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="a build for GPUs is here"
)


@pytest.fixture(scope="module")
def bundle(segmenter_bundle: Path) -> Bundle:
    return open_bundle(segmenter_bundle)


@pytest.fixture
def built_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists what its build for GPUs lists, also where no GPU is."""
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)


@pytest.fixture
def with_a_gpu(built_for_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """... and the driver knows of one, but no library of CUDA is there."""
    monkeypatch.setattr(choose, "find_device", lambda: ORIN)


# The choice


def test_the_cpu_needs_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    backend, profile = open_backend(bundle, "cpu", threads=1, cache=tmp_path, limit=2**30)
    with closing(backend):
        assert isinstance(backend, OrtCpuBackend)
        assert (backend.threads, backend.limit, profile) == (1, 2**30, "ort-cpu")
        assert backend.cache is not None


@needs_no_cuda
def test_by_itself_it_is_the_cpu_where_there_is_nothing_else(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        backend, profile = open_backend(bundle)
    assert isinstance(backend, OrtCpuBackend)
    assert profile == "ort-cpu"
    assert not caplog.records, "a build for CPUs was installed on purpose"


def test_an_unknown_device_is_refused_with_the_nearest_name(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"'tensort', known: auto, cpu.*mean 'tensorrt'"):
        open_backend(bundle, "tensort")


@needs_no_cuda
def test_a_build_for_cpus_is_named_with_what_to_install(bundle: Bundle) -> None:
    with pytest.raises(MissingExtraError, match=r"pip uninstall onnxruntime .*\[onnxruntime-gpu"):
        open_backend(bundle, "cuda")


@needs_no_cuda
def test_with_it_only_engines_of_our_own_could_run_and_what_they_lack_is_said(
    bundle: Bundle,
) -> None:
    with pytest.raises((DeviceError, MissingExtraError), match=r"driver|TensorRT|pycuda"):
        open_backend(bundle, "tensorrt")


@needs_no_gpu
@pytest.mark.usefixtures("built_for_gpus")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_without_a_gpu_it_says_so_at_once(bundle: Bundle, device: str) -> None:
    took = []
    for _ in range(3):
        started = time.perf_counter()
        with pytest.raises(DeviceError, match=r"driver.*device cpu"):
            open_backend(bundle, device)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.05


@needs_no_gpu
@pytest.mark.usefixtures("built_for_gpus")
def test_by_itself_it_takes_the_cpu_and_says_why(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        backend, profile = open_backend(bundle, "auto")
    assert isinstance(backend, OrtCpuBackend)
    assert profile == "ort-cpu"
    assert "running on the CPU, not on a GPU: " in caplog.text
    assert "driver" in caplog.text


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(("device", "target"), [("cuda", "ort-cuda"), ("tensorrt", "tensorrt-10")])
def test_a_bundle_for_another_device_is_named_with_how_to_export_it(
    bundle: Bundle, device: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "built_for_tensorrt", lambda _: 10)
    with pytest.raises(
        BundleError, match=f"only for ort-cpu; export it again with --target {target}"
    ):
        open_backend(bundle, device)


@needs_no_cuda
def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(DeviceError, match=r"cannot be loaded \(\S+\.so\S*: cannot open"):
        require_provider(ort, "CUDAExecutionProvider")


def test_the_tensorrt_it_was_built_for_is_read_from_its_library(tmp_path: Path) -> None:
    module = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    with pytest.raises(DeviceError, match="cannot be read"):
        built_for_tensorrt(module)
    library = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF\0libcudart.so.12\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    assert built_for_tensorrt(module) == 10
    library.write_bytes(b"\x7fELF\0libcudart.so.12\0")
    with pytest.raises(DeviceError, match="does not say"):
        built_for_tensorrt(module)


@pytest.mark.parametrize(
    ("number", "version"), [(8601, "8.6.1"), (100300, "10.3.0"), (110401, "11.4.1")]
)
def test_versions_of_tensorrt_are_spelt(number: int, version: str) -> None:
    assert spell_version(number) == version


def test_a_tensorrt_that_is_not_installed_is_named() -> None:
    with pytest.raises(DeviceError, match=r"TensorRT 7 could not be loaded.*LD_LIBRARY_PATH"):
        tensorrt_version(7)


@needs_no_gpu
def test_the_driver_is_asked_in_words() -> None:
    for ask in (find_device, nvidia.DeviceMemory):
        with pytest.raises(DeviceError, match="driver"):
            ask()


# What the providers are told


def told(place: Any, index: int) -> dict[str, Any]:
    return dict(place.providers[index][1])


def test_fp16_is_asked_of_the_builder_only_where_the_profile_says_so() -> None:
    assert told(tensorrt(fp16=True, engines=None), 0)["trt_fp16_enable"] is True
    assert told(tensorrt(fp16=False, engines=None), 0)["trt_fp16_enable"] is False


def test_single_precision_is_not_rounded_to_tf32() -> None:
    assert told(cuda(half=False), 0)["use_tf32"] == 0
    assert told(cuda(half=True), 0)["use_tf32"] == 1
    assert told(tensorrt(fp16=False, engines=None), 1)["use_tf32"] == 0


def test_a_limit_bounds_the_arena_and_the_workspace() -> None:
    assert "gpu_mem_limit" not in told(cuda(half=False), 0)
    assert told(cuda(half=False, limit=10**8), 0)["gpu_mem_limit"] == 10**8
    assert told(tensorrt(False, None, limit=10**7), 0)["trt_max_workspace_size"] == 10**7
    assert told(tensorrt(False, None, limit=10**10), 0)["trt_max_workspace_size"] == 2**28


def test_engines_are_kept_where_there_is_a_place(tmp_path: Path) -> None:
    kept, built = told(tensorrt(False, tmp_path), 0), told(tensorrt(False, None), 0)
    assert kept["trt_engine_cache_enable"] is kept["trt_timing_cache_enable"] is True
    assert kept["trt_engine_cache_path"] == kept["trt_timing_cache_path"] == str(tmp_path)
    assert not [name for name in built if "cache" in name]


# Engines


def build(cache: EngineCache, graph: str, content: bytes = b"engine") -> Path:
    """What ONNX Runtime does while a session is made."""
    cache.announce(graph)
    engine = cache.folder / f"{graph.replace('/', '_')}.engine"
    engine.write_bytes(content)
    cache.record()
    return engine


def test_a_recorded_engine_is_kept_and_not_announced_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "a", FACTS)
    with caplog.at_level(logging.WARNING):
        engine = build(cache, "graphs/x.onnx")
        assert "building a TensorRT engine of graphs/x.onnx for this device (Orin" in caplog.text
        caplog.clear()
        again = EngineCache(tmp_path / "a", FACTS)
        again.announce("graphs/x.onnx")
        again.record()
    assert engine.read_bytes() == b"engine"
    assert not caplog.records


@pytest.mark.parametrize("how", ["altered", "cut", "unrecorded", "no record", "not a record"])
def test_an_engine_that_is_not_as_it_was_recorded_is_built_anew(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = build(EngineCache(tmp_path, FACTS), "x")
    if how == "unrecorded":  # by a run that was killed
        engine = tmp_path / "y.engine"
    if how in ("altered", "cut", "unrecorded"):
        engine.write_bytes(b"" if how == "cut" else b"Engine")
    elif how == "no record":
        (tmp_path / "engines.json").unlink()
    else:
        (tmp_path / "engines.json").write_text('["files"]')
    with caplog.at_level(logging.WARNING):
        cache = EngineCache(tmp_path, FACTS)
        assert not engine.exists()
        cache.announce("x")
    assert "it is built anew" in caplog.text
    assert "building a TensorRT engine of x" in caplog.text


def test_an_engine_of_another_device_is_built_anew_whatever_its_record_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    engine = build(EngineCache(tmp_path / "engines", FACTS), "x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    cache = EngineCache(tmp_path / "engines", FACTS)
    assert not engine.exists()
    assert cache.graphs == []


def test_a_record_holds_for_no_other_device_or_software(tmp_path: Path) -> None:
    """Moved from the folder of other facts, with the engines that it names."""
    build(EngineCache(tmp_path, {**FACTS, "tensorrt": "10.0"}), "x")
    EngineCache(tmp_path, FACTS)
    assert not list(tmp_path.glob("*.engine"))


def test_each_device_software_and_bundle_has_a_folder_of_its_own(
    bundle: Bundle, tmp_path: Path
) -> None:
    profile = bundle.profile("ort-cpu")
    module = SimpleNamespace(__version__="1.23.2")
    one = facts(bundle, profile, module, ORIN, "10.3.0")
    others = [
        facts(bundle, profile, module, ORIN, "10.7.0"),
        facts(bundle, profile, module, CudaDevice(0, "Orin", (8, 7), 12080), "10.3.0"),
        facts(bundle, profile, module, CudaDevice(0, "Orin", (8, 6), 12060), "10.3.0"),
        facts(bundle, profile, module, CudaDevice(0, "Orin", (8, 7), 12060, True, 4), "10.3.0"),
        facts(bundle, profile, SimpleNamespace(__version__="1.24.0"), ORIN, "10.3.0"),
        {**one, "graphs": "of other weights"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        flashed = {"l4t": "36.5.0", "driver": "540.5.0"}
        patch.setattr("mdeq_runtime.backends.choose.system", lambda: flashed)
        others.append(facts(bundle, profile, module, ORIN, "10.3.0"))
    folders = set()
    for each in (one, *others, dict(reversed(one.items()))):
        cache = open_engine_cache([tmp_path], each)
        assert cache is not None
        folders.add(cache.folder)
    assert len(folders) == 1 + len(others)
    assert all(folder.name.startswith("Orin-") for folder in folders)


def test_engines_go_elsewhere_where_the_bundle_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    bundle, user = engine_roots(tmp_path / "x.mdeq", None)
    assert (bundle, user) == (tmp_path / "x.mdeq/engines", tmp_path / "home/edge-mdeq/engines")
    assert engine_roots(tmp_path / "x.mdeq", tmp_path / "mine") == (tmp_path / "mine/engines",)
    bundle.parent.write_text("a file is in the way")
    cache = open_engine_cache([bundle, user], FACTS)
    assert cache is not None
    assert cache.folder.parent == user
    assert not caplog.records
    assert open_engine_cache([bundle], FACTS) is None
    assert "cannot be kept" in caplog.text


def test_a_bundle_whose_tensors_no_machine_has_is_refused_before_it_is_loaded(
    bundle: Bundle,
) -> None:
    """Zeros of any size can be asked for; the kernel only ends who writes to them."""
    state = bundle.manifest.states[0]
    huge = replace(state, shape=(1, 2**10, 2**10, 2**10))  # 4 GiB, twice; and so for 64 of them
    manifest = replace(
        bundle.manifest,
        states=(huge,) * 64,
        state_outputs=tuple(f"next_{k}" for k in range(64)),
        values=tuple(f"value_{k}" for k in range(64)),
    )
    with pytest.raises(MemoryLimitError, match=r"takes \d+ MB for its tensors alone, this machine"):
        open_backend(replace(bundle, manifest=manifest), "cpu")
