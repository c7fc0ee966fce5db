"""The export from end to end: weights in, verified bundle out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edge_mdeq.bundle import (
    InputSpec,
    Manifest,
    OutputSpec,
    SolverSpec,
    TensorSpec,
    Tolerance,
    writing_bundle,
)
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.reader import MANIFEST
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.config import InputConfig, ModelCard
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.version import __version__
from edge_mdeq.weights import load_weights
from mdeq_export.compose import (
    CONFIDENCE,
    IMAGE,
    OUTPUT,
    RESIDUAL,
    state_names,
)
from mdeq_export.graphs import check_counts, write_profile
from mdeq_export.images import verification_images
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES
from mdeq_export.reference import TorchReference
from mdeq_export.verify import TOLERANCES, require_parity, verify

__all__ = ["ExportSettings", "export_bundle"]

PROFILE = "ort-cpu"
VERIFICATION_IMAGES = 8


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    Attributes:
        iterations: N of each rung, evaluations of f.
        solver: "fixed_point", "anderson" or "broyden", with ``solver_settings`` (tau; m, beta, lam;
            m).
        best: graphs return the iterate with the lowest residual instead of their last.
        size: (height, width) of the input; None keeps the weights' own.
        tolerances: what the parity gate allows, by precision.
        images: folder of images to verify on; None generates some.
        force: replace an existing bundle.
    """

    iterations: tuple[int, ...] = (1, 2, 4, 8)
    solver: str = "fixed_point"
    solver_settings: dict[str, float] = field(default_factory=dict)
    best: bool = False
    size: tuple[int, int] | None = None
    tolerances: dict[str, Tolerance] = field(default_factory=lambda: dict(TOLERANCES))
    images: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_counts(self.iterations)


def export_bundle(
    weights: Path,
    out: Path,
    settings: ExportSettings | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Export ``weights`` (``.safetensors``, or its folder) to the bundle ``out`` and verify it.

    Returns:
        The manifest, with what the verification measured.

    Raises:
        WeightsError, ConfigError, DataError: bad input; nothing is written.
        ParityError: the graphs do not compute what torch does; nothing is written.
        BundleError: ``out`` cannot be written, or exists and ``force`` is not set.
    """
    settings = settings or ExportSettings()
    solver = make_solver(settings.solver, **settings.solver_settings)
    progress("reading weights")
    model, card = load_weights(weights)
    config = card.input
    if settings.size is not None:
        config = replace(config, height=settings.size[0], width=settings.size[1])
    card.model.check_size(config.height, config.width)
    images, source = verification_images(
        settings.images, VERIFICATION_IMAGES, config.height, config.width
    )
    with writing_bundle(out, settings.force) as folder:
        frozen = model.freeze()
        progress("tracing the pieces")
        pieces = trace_pieces(frozen, config, solver, best=settings.best)
        profile = write_profile(pieces, PROFILES[PROFILE], settings.iterations, folder, progress)
        report = verify(
            TorchReference(frozen, config, solver, settings.best),
            {PROFILE: profile},
            folder,
            images,
            source,
            settings.tolerances,
            progress=progress,
        )
        require_parity(report)
        manifest = Manifest(
            name=out.stem,
            created_by=f"edge-mdeq {__version__}",
            task=card.model.task,
            labels=card.labels,
            palette=card.palette,
            **interface(frozen, config, card),
            **between(folder / profile.parts[0].advance[0].graph, card.model.scales),
            solver=SolverSpec(settings.solver, settings.solver_settings, settings.best),
            profiles={PROFILE: profile},
            verification=report,
            provenance=card.provenance,
            metrics=card.metrics,
            files=describe_files(folder),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return manifest


def interface(model: MDEQ, config: InputConfig, card: ModelCard) -> dict[str, Any]:
    """The part of the manifest that describes inputs and outputs."""
    height, width = config.height, config.width
    shapes = model.config.state_shapes(1, height, width)
    segmentation = model.config.task == "segmentation"
    answer = (
        OutputSpec(TensorSpec(OUTPUT, "uint8", (1, height, width)), "class_indices")
        if segmentation
        else OutputSpec(TensorSpec(OUTPUT, "float32", (1, model.config.classes)), "scores")
    )
    confidence = TensorSpec(CONFIDENCE, "float32", (1, *shapes[0][2:])) if segmentation else None
    return {
        "input": InputSpec(
            TensorSpec(IMAGE, "uint8", (1, height, width, 3)), config.mean, config.std
        ),
        "output": answer,
        "confidence": confidence,
        "states": tuple(
            TensorSpec(name, "float32", shape)
            for name, shape in zip(state_names(len(shapes)), shapes, strict=True)
        ),
        "state_outputs": tuple(state_names(len(shapes), "next_state")),
        "residual": TensorSpec(RESIDUAL, "float32", (1,)),
    }


def between(path: Path, scales: int) -> dict[str, Any]:
    """The part of the manifest that describes what an ``advance`` graph takes and gives."""
    graph = ir.load(path).graph
    inputs = [spec(value) for value in graph.inputs]
    outputs = [str(value.name) for value in graph.outputs]
    values = [name for name in outputs if name.startswith("value")]
    return {
        "injection": inputs[0],
        "values": tuple(values or outputs[:scales]),
        "history": tuple(inputs[1 + scales :]),
        "history_outputs": tuple(name for name in outputs if name.startswith("next_history")),
    }


def spec(value: ir.Value) -> TensorSpec:
    """A graph's input or output as the manifest names it."""
    assert value.shape is not None
    assert value.dtype is not None
    dtype = value.dtype.numpy().name
    return TensorSpec(str(value.name), dtype, tuple(int(n) for n in value.shape.numpy()))
