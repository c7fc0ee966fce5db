"""What a workshop writes: bundles, weights, checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from artefact import Artefact

__all__ = ["Bundle", "BundleAside", "Checkpoint", "NewFolder", "SameShape", "Weights", "manifest"]


class Bundle(Artefact):
    """A folder with a manifest and hashed files."""

    place = "tiny.mdeq"
    exchanges = True

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.bundle import writer

        if not self.exchanges:  # as on a file system without renameat2
            writer.exchange = lambda a, b: False
        with writer.writing_bundle(folder / self.place, force=True) as path:
            files = {
                "graphs/ort-cpu/fp32.data": version.encode() * 30_000,
                "graphs/ort-cpu/solve-k1.onnx": bytes([0x12, len(version)]) + version.encode(),
            }
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
            (path / "manifest.json").write_text(json.dumps(manifest(version, files)))

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.bundle import open_bundle

        if not (folder / self.place).exists():
            return None
        return open_bundle(folder / self.place, verify=True).manifest.name


class BundleAside(Bundle):
    """The same where two names cannot be exchanged: for a moment the old one lies aside."""

    exchanges = False

    def read(self, folder: Path) -> str | None:
        found = super().read(folder)
        asides = [path for path in folder.glob(f".{self.place}.*.tmp/old") if path.is_dir()]
        if found is None and asides:
            from edge_mdeq.bundle import open_bundle

            return open_bundle(asides[0], verify=True).manifest.name
        return found


class NewFolder(Artefact):
    """A plain file, in folders that are not there yet."""

    place = "a/b/file.json"

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.files import make_folder, write_atomic

        make_folder((folder / self.place).parent)
        write_atomic(folder / self.place, json.dumps([version] * 20_000).encode())

    def read(self, folder: Path) -> str | None:
        path = folder / self.place
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        assert len(values) == 20_000
        return str(values[0])


class Weights(Artefact):
    """Weights and the card beside them: of two architectures, so that neither fits the other."""

    place = "model.safetensors"

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
        from edge_mdeq.model import MDEQ
        from edge_mdeq.weights import save_weights

        classes = {"old": 2, "new": 3}[version]
        config = ModelConfig(
            task="segmentation", classes=classes, channels=(8, 8), expansion=1, groups=4
        )
        card = ModelCard(config, InputConfig(32, 32), provenance=Provenance(version))
        save_weights(MDEQ(config), card, folder / self.place)

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.weights import load_weights

        if not (folder / self.place).exists():
            return None
        model, card = load_weights(folder / self.place)
        assert model.config == card.model
        return card.provenance.name


class SameShape(Weights):
    """The same of one architecture: a card that is not of its weights would go unnoticed."""

    def write(self, folder: Path, version: str) -> None:
        import torch

        from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
        from edge_mdeq.model import MDEQ
        from edge_mdeq.weights import save_weights

        config = ModelConfig(task="segmentation", classes=2, channels=(8, 8), expansion=1, groups=4)
        card = ModelCard(config, InputConfig(32, 32), provenance=Provenance(version))
        torch.manual_seed(len(version))
        model = MDEQ(config)
        with torch.no_grad():
            for value in model.parameters():
                value.fill_({"old": 1.0, "new": 2.0}[version])
        save_weights(model, card, folder / self.place)

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.weights import load_weights

        if not (folder / self.place).exists():
            return None
        model, card = load_weights(folder / self.place)
        value = float(next(model.parameters()).detach().flatten()[0])
        assert {1.0: "old", 2.0: "new"}[value] == card.provenance.name
        return card.provenance.name


class Checkpoint(Artefact):
    """What a training run goes on from."""

    place = "checkpoint.pt"

    def write(self, folder: Path, version: str) -> None:
        import torch

        from edge_mdeq.training.checkpoint import save_checkpoint

        save_checkpoint(folder / self.place, {"version": version, "x": torch.ones(10_000)})

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.training.checkpoint import load_checkpoint

        if not (folder / self.place).exists():
            return None
        state = load_checkpoint(folder / self.place)
        assert int(state["x"].sum()) == 10_000
        return str(state["version"])


def manifest(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The least that is a manifest."""

    def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": shape}

    weights, graph = files
    state = tensor("state_0", "float32", 1, 4, 8, 8)
    return {
        "format": "edge-mdeq-bundle",
        "schema": 1,
        "name": name,
        "created_by": "edge-mdeq 0.1.0",
        "task": "segmentation",
        "labels": ["sky", "road"],
        "palette": [],
        "input": {
            "tensor": tensor("image", "uint8", 1, 32, 32, 3),
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "output": {"tensor": tensor("mask", "uint8", 1, 32, 32), "kind": "class_indices"},
        "confidence": None,
        "states": [state],
        "state_outputs": ["next_0"],
        "residual": tensor("residual", "float32", 1),
        "injection": tensor("injection", "float32", 1, 4, 8, 8),
        "values": ["next_0"],
        "history": [],
        "history_outputs": [],
        "solver": {"name": "fixed_point"},
        "profiles": {
            "ort-cpu": {
                "opset": 21,
                "weights": [{"precision": "fp32", "file": weights, "bytes": len(files[weights])}],
                "rungs": [{"steps": [{"precision": "fp32", "evaluations": 1}], "graph": graph}],
            }
        },
        "verification": {
            "images": 1,
            "source": "test://",
            "tolerances": {},
            "reference_evaluations": 1,
            "reference_residual": 0.1,
            "backend": "none",
            "rungs": [],
        },
        "provenance": {},
        "files": {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for file, data in files.items()
        },
    }
