"""What the tests of the TensorRT backend share: bundles, and a GPU that is an imitation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the doubles
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fake_cuda
import terminal
from doubles import VERSIONS, TensorRT
from playing import for_every_version
from tensorrt_models import engine_bytes

from edge_mdeq.bundle import Bundle
from mdeq_runtime.backends import nvidia
from mdeq_runtime.tensorrt.backend import TensorRTBackend
from mdeq_runtime.tensorrt.versions import flavour_of


@pytest.fixture(scope="session")
def plain(segmenter_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The segmenter under the plain iteration, which has no history."""
    return for_every_version(segmenter_bundle, tmp_path_factory.mktemp("trt") / "plain.mdeq")


@pytest.fixture(scope="session")
def anderson(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The segmenter under a solver with a history."""
    from quick_exports import traced_once, two_images

    from mdeq_export import ExportSettings, export_bundle

    out = tmp_path_factory.mktemp("trt") / "exported.mdeq"
    settings = ExportSettings(iterations=(2,), solver="anderson", solver_settings={"m": 3})
    with two_images(), traced_once():
        export_bundle(segmenter_weights, out, settings)
    return for_every_version(out, out.with_name("anderson.mdeq"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_cuda.Gpu:
    """A GPU of which nothing is in use."""
    fake_cuda.gpu.reset()
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake_cuda)  # type: ignore[arg-type]
    driver = fake_cuda.Libcuda()
    monkeypatch.setattr(nvidia, "_driver", lambda: driver)
    return fake_cuda.gpu


@pytest.fixture(params=VERSIONS)
def double(request: pytest.FixtureRequest) -> TensorRT:
    """Each version of TensorRT in turn."""
    return TensorRT(request.param)


@pytest.fixture
def ten() -> TensorRT:
    """The TensorRT of JetPack 6."""
    return TensorRT("10.3.0")


Engines = Callable[..., Callable[[str], Path]]


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    """A function that gives ``engine_of`` for a bundle: it writes engines when asked for them."""

    def make(bundle: Bundle, double: TensorRT, **facts: int) -> Callable[[str], Path]:
        def engine_of(graph: str) -> Path:
            path = tmp_path / f"{Path(graph).stem}.engine"
            path.write_bytes(engine_bytes(double.version, bundle.path / graph, **facts))
            return path

        return engine_of

    return make


@pytest.fixture
def open_backend(gpu: fake_cuda.Gpu, engines: Engines) -> Iterator[Callable[..., Any]]:
    """A function that opens a backend on doubles; what it opened must leave nothing behind."""
    opened = []

    def make(bundle: Bundle, double: TensorRT, **settings: Any) -> TensorRTBackend:
        settings.setdefault("engine_of", engines(bundle, double))
        opened.append(TensorRTBackend(bundle, flavour_of(double.module, double.rtx), **settings))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
    assert not gpu.blocks, "device memory is left"
    assert not gpu.pinned, "page-locked memory is left"
    assert not gpu.graphs, "captured graphs are left"
    assert gpu.retained == 0, "the context is still held"
    assert not fake_cuda.stack(), "a context is current in the test's own thread"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of builds, where there were any."""
    made = config.stash.get(terminal.TABLE, None)
    if made is not None:
        terminalreporter.write_line(terminal.spell(made))
