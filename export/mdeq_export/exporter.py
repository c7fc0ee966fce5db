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
    Profile,
    Rung,
    SolverSpec,
    Step,
    TensorSpec,
    WeightsFile,
    writing_bundle,
)
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.reader import MANIFEST
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.config import InputConfig, ModelCard
from edge_mdeq.errors import ConfigError, ExportError
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.version import __version__
from edge_mdeq.weights import load_weights
from mdeq_export.compose import (
    CONFIDENCE,
    IMAGE,
    OUTPUT,
    RESIDUAL,
    next_name,
    solve_model,
    state_name,
)
from mdeq_export.images import verification_images
from mdeq_export.passes import run_passes
from mdeq_export.pieces import OPSET, Pieces, trace_pieces
from mdeq_export.profiles import PROFILES
from mdeq_export.serialize import check_graph, save_graph, write_weights
from mdeq_export.verify import Tolerance, require_parity, verify

__all__ = ["ExportSettings", "export_bundle"]

PRECISION = "fp32"
PROFILE = "ort-cpu"
MAX_EVALUATIONS = 256
VERIFICATION_IMAGES = 8


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    Attributes:
        iterations: N of each rung, evaluations of f.
        solver: "fixed_point" or "anderson", with ``solver_settings`` (tau; m, beta, lam).
        size: (height, width) of the input; None keeps the weights' own.
        tolerance: what the parity gate allows.
        images: folder of images to verify on; None generates some.
        force: replace an existing bundle.
    """

    iterations: tuple[int, ...] = (1, 2, 4, 8)
    solver: str = "fixed_point"
    solver_settings: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    images: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not self.iterations:
            raise ConfigError("iterations is empty, need at least one count")
        for count in self.iterations:
            if not 1 <= count <= MAX_EVALUATIONS:
                raise ConfigError(f"iterations {count} is not in 1..{MAX_EVALUATIONS}")


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
        pieces = trace_pieces(frozen, config, solver)
        graphs, weights_file = write_graphs(pieces, settings.iterations, folder, progress)
        report = verify(
            frozen, config, solver, graphs, images, source, settings.tolerance, progress
        )
        require_parity(report)
        manifest = Manifest(
            name=out.stem,
            created_by=f"edge-mdeq {__version__}",
            task=card.model.task,
            labels=card.labels,
            palette=card.palette,
            **interface(frozen, config, card),
            solver=SolverSpec(settings.solver, settings.solver_settings),
            profiles={PROFILE: profile(folder, graphs, weights_file)},
            verification=report,
            provenance=card.provenance,
            metrics=card.metrics,
            files=describe_files(folder),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return manifest


def write_graphs(
    pieces: Pieces, iterations: tuple[int, ...], folder: Path, progress: Callable[[str], None]
) -> tuple[dict[int, Path], Path]:
    """Lower the pieces, write their weights once, and one checked graph per rung."""
    place = folder / "graphs" / PROFILE
    place.mkdir(parents=True)
    for graph in pieces.all().values():
        run_passes(graph, PROFILES[PROFILE].passes)
    weights_file = place / f"weights-{PRECISION}.bin"
    references: dict[str, ir.ExternalTensor] | None = None
    graphs: dict[int, Path] = {}
    for count in sorted(set(iterations)):
        progress(f"composing {count} evaluations")
        rung = solve_model(pieces, count)
        if references is None:
            tensors = {
                name: value.const_value
                for name, value in rung.graph.initializers.items()
                if value.const_value is not None
            }
            references = write_weights(tensors, weights_file)
        graphs[count] = place / f"solve-k{count}.onnx"
        try:
            save_graph(rung, references, graphs[count])
        except OSError as error:
            raise ExportError(f"cannot write {graphs[count]}: {error.strerror}") from error
        check_graph(graphs[count])
    return graphs, weights_file


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
            TensorSpec(state_name(i), "float32", shape) for i, shape in enumerate(shapes)
        ),
        "state_outputs": tuple(next_name(i) for i in range(len(shapes))),
        "residual": TensorSpec(RESIDUAL, "float32", (1,)),
    }


def profile(folder: Path, graphs: dict[int, Path], weights_file: Path) -> Profile:
    """The profile's entry in the manifest, with paths relative to the bundle."""
    relative = {count: path.relative_to(folder).as_posix() for count, path in graphs.items()}
    name = weights_file.relative_to(folder).as_posix()
    return Profile(
        opset=OPSET,
        weights=(WeightsFile(PRECISION, name, weights_file.stat().st_size),),
        rungs=tuple(Rung((Step(PRECISION, count),), graph) for count, graph in relative.items()),
    )
