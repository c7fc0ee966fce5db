"""Rungs in int8 and refined ones, written beside those that a profile has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edge_mdeq.bundle import Parts, Profile, Rung, Step, WeightsFile
from mdeq_export.compose import INT8, Pieces, piece_models, readout_model, solve_model
from mdeq_export.cost import counted
from mdeq_export.graphs import all_initializers, write_graph, write_rungs
from mdeq_export.profiles import TargetProfile
from mdeq_export.serialize import write_weights

__all__ = ["add_int8", "write_refined"]

WHOLE = {"q": "c", "p": "o"}  # the pieces with integer convolutions, and what they were made of
ROUNDED = frozenset(WHOLE)

Progress = Callable[[str], None]


def add_int8(
    profile: Profile,
    pieces: Pieces,
    target: TargetProfile,
    counts: Iterable[int],
    root: Path,
    refine: int,
    progress: Progress = lambda message: None,
) -> Profile:
    """``profile`` with rungs in int8 and refined ones beside its own, written below ``root``.

    A refined rung's last ``refine`` evaluations are in single precision; counts that have no more
    than these have none. The int8 cell and readout have a weights file of their own; what stays in
    floating point refers to that of the profile.

    Args:
        profile: in single precision, written by ``write_profile``.
        pieces: lowered, with an int8 cell.
        target, counts, root, progress: as ``write_profile`` takes them.
        refine: evaluations in single precision at the end; 0: no refined rungs.

    Raises:
        ExportError: a graph is not valid, or holds what the profile does not allow.
        OSError: a file cannot be written.
    """
    place = root / "graphs" / target.name
    (single,) = profile.parts
    weights = place / f"weights-{INT8}.bin"
    tensors = all_initializers(pieces)
    references = stored(single, root)
    own = {name: tensor for name, tensor in tensors.items() if name[0] in ROUNDED}
    for name in list(own):  # a layer that stays in floating point is there already
        same = references.get(WHOLE[name[0]] + name[1:])
        if same is not None and same.dtype == own[name].dtype:
            references[name] = renamed(same, name)
            del own[name]
    references |= write_weights(own, weights)
    ladder = write_rungs(pieces, counts, root, place, target, INT8, references, progress)
    refined = write_refined(pieces, counts, root, place, target, refine, references, progress)
    readout = single.readout
    if pieces.int8_readout is not None:
        path = place / f"readout-{INT8}.onnx"
        readout = write_graph(readout_model(pieces, INT8), path, target, references, root)
    rounded = {
        name: write_graph(model, place / f"piece-{name}.onnx", target, references, root)
        for name, model in piece_models(pieces).items()
        if name in ROUNDED
    }
    parts = Parts(INT8, single.inject, ladder.advance, readout, single.pieces | rounded)
    file = WeightsFile(INT8, weights.relative_to(root).as_posix(), weights.stat().st_size)
    extended = replace(
        profile,
        weights=(*profile.weights, file),
        rungs=(*profile.rungs, *ladder.solve, *refined),
        parts=(single, parts),
    )
    return counted(extended, root)


def renamed(tensor: ir.ExternalTensor, name: str) -> ir.ExternalTensor:
    """The same bytes under another name."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=name,
        base_dir=tensor.base_dir,
    )


def stored(parts: Parts, root: Path) -> dict[str, ir.ExternalTensor]:
    """Where the large constants of the pieces of ``parts`` lie, by their names in a graph."""
    found = {}
    for file in parts.pieces.values():
        for name, value in ir.load(root / file).graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                found[name] = tensor
    return found


def write_refined(
    pieces: Pieces,
    counts: Iterable[int],
    root: Path,
    place: Path,
    target: TargetProfile,
    refine: int,
    references: Mapping[str, ir.ExternalTensor],
    progress: Progress = lambda message: None,
) -> tuple[Rung, ...]:
    """A ``solve`` graph for each of ``counts`` above ``refine``, whose last evaluations are FP32.

    Args and Raises: see ``write_rungs``; with ``refine`` 0 there are none.
    """
    rungs = []
    for count in sorted(set(counts)) if refine else ():
        if count <= refine:
            continue
        progress(f"composing a refined solve for {target.name}, {count} evaluations")
        steps = (Step(INT8, count - refine), Step("fp32", refine))
        path = place / f"solve-{INT8}-k{count - refine}-fp32-k{refine}.onnx"
        file = write_graph(solve_model(pieces, steps), path, target, references, root)
        rungs.append(Rung(steps, file))
    return tuple(rungs)
