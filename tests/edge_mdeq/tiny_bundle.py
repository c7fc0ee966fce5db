"""A bundle with something in every field, whose files are no more than names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge_mdeq.bundle import (
    FileEntry,
    InputSpec,
    Manifest,
    OutputSpec,
    Parts,
    Profile,
    Rung,
    RungParity,
    SolverSpec,
    Step,
    TensorSpec,
    Tolerance,
    Verification,
    WeightsFile,
)
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.config import Provenance

GRAPH, WEIGHTS = "graphs/ort-cpu/solve-k4.onnx", "graphs/ort-cpu/fp32.data"


def producer(name: str) -> bytes:
    """A graph without nodes that names its producer."""
    return bytes([0x12, len(name)]) + name.encode()


PARTS = {f"graphs/ort-cpu/{n}.onnx": producer(n) for n in ("inject", "advance-k1", "readout", "c")}
PART_FIELDS = ("inject", "advance.0.graph", "readout", "pieces.c")
CONTENT = {GRAPH: producer("graph"), WEIGHTS: b"weights" * 100, **PARTS}


def parts() -> Parts:
    inject, advance, readout, cell = PARTS
    rungs = (Rung((Step("fp32", 1),), advance),)
    return Parts("fp32", inject, rungs, readout, pieces={"c": cell})


def manifest_of(content: dict[str, bytes], name: str = "tiny") -> Manifest:
    """A manifest with something in every field."""
    return Manifest(
        name=name,
        created_by="edge-mdeq 0.1.0",
        task="segmentation",
        labels=("sky", "road"),
        palette=((0, 0, 255), (90, 60, 120)),
        input=InputSpec(
            TensorSpec("image", "uint8", (1, 32, 48, 3)), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        ),
        output=OutputSpec(TensorSpec("mask", "uint8", (1, 32, 48)), "class_indices"),
        confidence=TensorSpec("confidence", "float32", (1, 8, 12)),
        states=(
            TensorSpec("state_0", "float32", (1, 8, 8, 12)),
            TensorSpec("state_1", "float32", (1, 16, 4, 6)),
        ),
        state_outputs=("next_0", "next_1"),
        residual=TensorSpec("residual", "float32", (1,)),
        injection=TensorSpec("injection", "float32", (1, 8, 8, 12)),
        values=("value_0", "value_1"),
        history=(TensorSpec("history_0", "float32", (1, 8, 8, 12)),),
        history_outputs=("next_history_0",),
        solver=SolverSpec("anderson", {"m": 2.0}, best=True),
        profiles={
            "ort-cpu": Profile(
                opset=21,
                weights=(WeightsFile("fp32", WEIGHTS, len(content[WEIGHTS])),),
                rungs=(Rung((Step("fp32", 3), Step("fp32", 1)), GRAPH),),
                parts=(parts(),) if PARTS.keys() <= content.keys() else (),
            )
        },
        verification=Verification(
            images=2,
            source="test://",
            tolerances={"fp32": Tolerance(1e-3, 1e-4, 0.999)},
            reference_evaluations=64,
            reference_residual=1e-5,
            backend="onnxruntime",
            rungs=(RungParity("ort-cpu", "fp32", 4, 1e-6, 1e-6, 1e-5, 1.0, 0.1, 0.99, 0.05),),
        ),
        provenance=Provenance(name="tiny", licence="CC0"),
        files={n: FileEntry(hashlib.sha256(b).hexdigest(), len(b)) for n, b in content.items()},
        metrics={"miou": 0.5},
        warnings=("Überraschung",),
    )


def fill(folder: Path, content: dict[str, bytes] | None = None, name: str = "tiny") -> None:
    """Write files and their manifest into ``folder``."""
    content = CONTENT if content is None else content
    for file, data in content.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest_of(content, name)))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
