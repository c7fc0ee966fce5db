"""The files of one profile: its graphs, lowered and checked, and the weights that they share.

Nothing here needs torch: what was written once can be read again and composed to further rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edge_mdeq.bundle import Bundle, Parts, Profile, Rung, Step, WeightsFile
from edge_mdeq.errors import BundleError, ConfigError
from mdeq_export.compose import (
    INT8,
    Composer,
    Pieces,
    advance_model,
    inject_model,
    piece_models,
    readout_model,
    solve_model,
)
from mdeq_export.cost import counted
from mdeq_export.operators import check_operators
from mdeq_export.passes import DropIdentity, run_passes
from mdeq_export.profiles import TargetProfile
from mdeq_export.serialize import check_graph, save_graph, write_weights

__all__ = [
    "Ladder",
    "all_initializers",
    "check_counts",
    "lower",
    "read_pieces",
    "write_graph",
    "write_profile",
    "write_rungs",
]

MODEL = frozenset("ico")  # the pieces that are the model's: injection, cell, readout
MAX_EVALUATIONS = 256
DYNAMIC_TRIED = 2  # the batch that an open one is verified with

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Ladder:
    """The rungs of one profile and precision, with paths relative to the bundle."""

    solve: tuple[Rung, ...]
    advance: tuple[Rung, ...]


def lower(pieces: Pieces, target: TargetProfile, precision: str = "fp32") -> Pieces:
    """A copy of ``pieces`` after the profile's passes.

    In "fp16" the model computes in half precision; states and the solver never do.
    """
    lowered = {name: graph.clone() for name, graph in pieces.all().items()}
    for name, graph in lowered.items():
        half = precision == "fp16" and name in MODEL
        run_passes(graph, target.half_passes if half else target.passes)
    return Pieces.of(target.opset, lowered)


def write_profile(
    pieces: Pieces,
    target: TargetProfile,
    counts: Iterable[int],
    root: Path,
    precision: str = "fp32",
    progress: Progress = lambda message: None,
) -> Profile:
    """Write everything of one profile below ``root``, the bundle.

    Args:
        pieces: as they were traced.
        target: what they are lowered for.
        counts: N of each rung, evaluations of f.
        root: the bundle's folder.
        precision: "fp32" or "fp16".
        progress: told what is being done.

    Returns:
        The profile's entry in the manifest.

    Raises:
        ExportError: a graph is not valid, or holds what the profile does not allow.
        OSError: a file cannot be written.
    """
    place = root / "graphs" / target.name
    lowered = lower(pieces, target, precision)
    place.mkdir(parents=True)
    weights = place / f"weights-{precision}.bin"
    references = write_weights(all_initializers(lowered), weights)
    ladder = write_rungs(lowered, counts, root, place, target, precision, references, progress)
    progress(f"writing the parts for {target.name}")
    named = {"inject": inject_model(lowered), "readout": readout_model(lowered)}
    named |= {f"piece-{name}": model for name, model in piece_models(lowered).items()}
    files = {
        name: write_graph(model, place / f"{name}.onnx", target, references, root)
        for name, model in named.items()
    }
    parts = Parts(
        precision,
        inject=files.pop("inject"),
        advance=ladder.advance,
        readout=files.pop("readout"),
        pieces={name.removeprefix("piece-"): path for name, path in files.items()},
    )
    size = weights.stat().st_size
    profile = Profile(
        opset=lowered.opset,
        weights=(WeightsFile(precision, weights.relative_to(root).as_posix(), size),),
        rungs=ladder.solve,
        parts=(parts,),
    )
    return counted(profile, root)


def check_counts(counts: Iterable[int]) -> set[int]:
    """``counts`` without repetition.

    Raises:
        ConfigError: there are none, or one is out of range.
    """
    wanted = set(counts)
    if not wanted:
        raise ConfigError("iterations is empty, need at least one count")
    for count in sorted(wanted):
        if not 1 <= count <= MAX_EVALUATIONS:
            raise ConfigError(f"iterations {count} is not in 1..{MAX_EVALUATIONS}")
    return wanted


def write_rungs(
    pieces: Pieces,
    counts: Iterable[int],
    root: Path,
    place: Path,
    target: TargetProfile,
    precision: str,
    references: Mapping[str, ir.ExternalTensor],
    progress: Progress = lambda message: None,
) -> Ladder:
    """Compose, write and check a ``solve`` and an ``advance`` graph for each of ``counts``.

    There is always an ``advance`` of one evaluation.

    Args:
        pieces: lowered, or read back.
        counts: evaluations of f.
        root: the bundle's folder.
        place: the profile's, within it.
        target: whose operators they may hold.
        precision: of the pieces.
        references: where large initializers lie, by name.
        progress: told what is being done.

    Raises:
        ExportError: a graph is not valid, or holds what the profile does not allow.
        OSError: a file cannot be written.
    """
    solve: list[Rung] = []
    advance: list[Rung] = []
    kind = f"-{INT8}" if precision == INT8 else ""
    for count in sorted(set(counts)):
        progress(f"composing solve{kind} for {target.name}, {count} evaluations")
        steps = (Step(precision, count),)
        model = solve_model(pieces, steps if kind else count)
        file = write_graph(model, place / f"solve{kind}-k{count}.onnx", target, references, root)
        solve.append(Rung(steps, file))
    for count in sorted({1, *counts}):  # one at a time, for a host loop
        progress(f"composing advance{kind} for {target.name}, {count} evaluations")
        model = advance_model(pieces, count, precision)
        file = write_graph(model, place / f"advance{kind}-k{count}.onnx", target, references, root)
        advance.append(Rung((Step(precision, count),), file))
    return Ladder(tuple(solve), tuple(advance))


def write_graph(
    model: ir.Model,
    path: Path,
    target: TargetProfile,
    references: Mapping[str, ir.ExternalTensor],
    root: Path,
) -> str:
    """Write and check one graph; its name within the bundle ``root``."""
    save_graph(model, references, path)
    check_graph(path)
    check_operators(path, target)
    return path.relative_to(root).as_posix()


def all_initializers(pieces: Pieces) -> dict[str, ir.TensorProtocol]:
    """What any graph of these pieces can hold, by its name there."""
    composer = Composer(pieces)
    for name, graph in pieces.all().items():
        for value in graph.initializers.values():
            if value.uses():
                composer.share(name, value)
    tensors = {name: value.const_value for name, value in composer.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def read_pieces(bundle: Bundle, profile: str, precision: str) -> Pieces:
    """The pieces of a bundle, ready to compose; their large weights stay where they are.

    Raises:
        BundleError: the bundle has none for that profile and precision, or a file is damaged.
    """
    entry = bundle.profile(profile)
    parts = [parts for parts in entry.parts if parts.precision == precision]
    if not parts:
        raise BundleError(
            f"{bundle.path} holds no pieces of {profile} in {precision}: it can only be exported "
            "again, from its weights"
        )
    for weights in entry.weights:
        bundle.file(weights.file)
    named = {}
    for name, file in parts[0].pieces.items():
        graph = ir.load(bundle.file(file)).graph
        for value in list(graph.initializers.values()):
            value.name = str(value.name).removeprefix(f"{name}/")
        DropIdentity().call(graph)  # what the piece only passes through is named twice in its file
        named[name] = graph
    return Pieces.of(entry.opset, named)
