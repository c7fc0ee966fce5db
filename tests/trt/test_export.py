"""``export --format engine`` goes on to engines, or says at once that there cannot be any."""

from __future__ import annotations

from pathlib import Path

import pytest
from playing import for_every_version
from typer.testing import CliRunner

from edge_mdeq.bundle import Manifest
from edge_mdeq.cli import app, engine, export
from edge_mdeq.errors import DeviceError
from mdeq_export import ExportSettings
from mdeq_runtime.backends import nvidia
from mdeq_runtime.backends.nvidia import CudaDevice
from mdeq_runtime.tensorrt import identity
from mdeq_runtime.tensorrt.records import EngineRecord
from mdeq_runtime.tensorrt.versions import find_release, installed
from mdeq_runtime.tensorrt.workshop import Workshop

pytestmark = pytest.mark.skipif(not installed(), reason="no TensorRT is installed")


def call(monkeypatch: pytest.MonkeyPatch, weights: Path, out: Path) -> object:
    """Run the verb here; what it raised."""
    for module in (export, engine):
        monkeypatch.setattr(module, "stop_by_signals", lambda: None)
    command = ["export", str(weights), "-o", str(out), "--format", "engine", "--quiet"]
    return CliRunner().invoke(app, command).exception


def test_engines_come_after_the_bundle(
    segmenter_weights: Path,
    segmenter_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The export itself, which takes long, is a copy here."""
    targets: list[str] = []

    def copy(weights: Path, out: Path, settings: ExportSettings, progress: object) -> Manifest:
        targets.extend(settings.targets)
        return for_every_version(segmenter_bundle, out).manifest

    monkeypatch.setattr("mdeq_export.export_bundle", copy)
    for module in (nvidia, identity):
        monkeypatch.setattr(module, "find_device", lambda: CudaDevice(0, "GPU", (8, 6), 13000))
    built: list[str] = []

    def build(self: Workshop, graph: str) -> EngineRecord:
        built.append(graph)
        measured = {"seconds": 1.0, "peak_bytes": 1.0, "layers": 1.0}
        return EngineRecord(graph, "", "", 1, self.store.identity, measured=measured)

    monkeypatch.setattr(Workshop, "build", build)
    out = tmp_path / "own.mdeq"
    assert call(monkeypatch, segmenter_weights, out) is None
    assert targets == ["ort-cpu", find_release().profile]
    assert [Path(graph).stem for graph in built] == ["inject", "readout", "advance-k1", "solve-k2"]


def test_without_a_gpu_nothing_is_exported_in_vain(
    segmenter_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> CudaDevice:
        raise DeviceError("no NVIDIA driver was found")

    monkeypatch.setattr(nvidia, "find_device", none)
    raised = call(monkeypatch, segmenter_weights, tmp_path / "own.mdeq")
    assert "no NVIDIA driver" in str(raised)
    assert list(tmp_path.iterdir()) == []
