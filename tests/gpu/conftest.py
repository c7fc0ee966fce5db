"""What a GPU is needed for: ``pytest -m gpu``, here or on a Jetson, leaves ``out/gpu-report.json``.

The report is to be sent back: the device, the versions, each test's outcome, and what was measured.
Where something is missing the tests are skipped, and the report says what. EDGE_MDEQ_BUNDLE is a
bundle to take in place of the sample, as one exported for the TensorRT of a board.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "trt"))  # for playing

from playing import for_every_version

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import DeviceError, EngineError, MissingExtraError
from edge_mdeq.files import write_atomic
from mdeq_runtime.backends.nvidia import find_device
from mdeq_runtime.tensorrt.backend import TensorRTBackend
from mdeq_runtime.tensorrt.engines import EngineStore
from mdeq_runtime.tensorrt.identity import identify
from mdeq_runtime.tensorrt.opening import require_tensorrt
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Flavour, find_flavour
from mdeq_runtime.tensorrt.workshop import Workshop

ROOT = Path(__file__).parents[2]
SAMPLE = Path(
    os.environ.get("EDGE_MDEQ_BUNDLE") or ROOT / "samples" / "bundles" / "camvid-nano.mdeq"
)
REPORT, KEPT = ROOT / "out" / "gpu-report.json", ROOT / "out" / "gpu-engines"
PACKAGES = ("tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "pycuda", "onnxruntime", "numpy")

outcomes: dict[str, str] = {}
measured: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        outcomes[report.nodeid] = report.outcome + (f": {why}" if why else "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.option.markexpr == "gpu":
        REPORT.parent.mkdir(exist_ok=True)
        write_atomic(REPORT, json.dumps(describe(), indent=1).encode() + b"\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.option.markexpr == "gpu":
        terminalreporter.write_line(f"the report to send back: {REPORT}")


def describe() -> dict[str, Any]:
    """The report."""
    try:
        found = find_device()
        gpu: dict[str, Any] | str = {
            "name": found.name, "capability": found.capability, "driver": found.driver,
        }  # fmt: skip
    except DeviceError as error:
        gpu = str(error)
    tegra = Path("/etc/nv_tegra_release")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "gpu": gpu,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jetson": tegra.read_text().strip() if tegra.is_file() else None,
        "versions": versions,
        "outcomes": outcomes,
        "measured": measured,
    }


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Put numbers into the report, by name."""

    def note(**numbers: Any) -> None:
        measured.setdefault(request.node.nodeid, {}).update(numbers)

    return note


@pytest.fixture(scope="session")
def flavour() -> Flavour:
    """The TensorRT that is here, or no test."""
    try:
        release = require_tensorrt()
        return find_flavour(release.rtx)
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plain(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle; its graphs for ONNX Runtime, if it has none for this TensorRT."""
    if not SAMPLE.is_dir():
        pytest.skip(f"{SAMPLE} is not there; EDGE_MDEQ_BUNDLE names another bundle")
    bundle = open_bundle(SAMPLE)
    if flavour.profile in bundle.manifest.profiles:
        return bundle
    return for_every_version(SAMPLE, tmp_path_factory.mktemp("gpu") / "camvid-nano.mdeq")


@pytest.fixture(scope="session")
def anderson(
    flavour: Flavour, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle whose solver has a history; it is exported here."""
    pytest.importorskip("torch", reason="to export a bundle with a history needs torch")
    from quick_exports import two_images

    from mdeq_export import ExportSettings, export_bundle

    out = tmp_path_factory.mktemp("gpu") / "anderson.mdeq"
    settings = ExportSettings(
        iterations=(2,),
        solver="anderson",
        solver_settings={"m": 3},
        targets=("ort-cpu", flavour.profile),
    )
    with two_images():
        export_bundle(request.getfixturevalue("segmenter_weights"), out, settings)
    return open_bundle(out)


EngineOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def engine_of(flavour: Flavour) -> Callable[[Bundle], EngineOf]:
    """A function that finds a bundle's engines, and builds what is not there; they are kept."""

    def of(bundle: Bundle) -> EngineOf:
        settings = BuildSettings()
        identity = identify(flavour, bundle.profile(flavour.profile), settings)
        store = EngineStore(bundle, flavour.profile, identity, KEPT)
        workshop = Workshop(store, flavour.rtx, settings)

        def find(graph: str) -> Path:
            try:
                return store.find(graph)
            except EngineError:
                workshop.build(graph)
                return store.find(graph)

        return find

    return of


@pytest.fixture
def open_backend(flavour: Flavour, engine_of: Callable[[Bundle], EngineOf]) -> Iterator[Any]:
    """A function that opens a backend on a bundle; all are closed at the end."""
    opened = []

    def make(bundle: Bundle, **settings: Any) -> TensorRTBackend:
        settings.setdefault("engine_of", engine_of(bundle))
        opened.append(TensorRTBackend(bundle, flavour, **settings))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
