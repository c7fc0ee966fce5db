"""Which layers compute in integers: all whose rounding the equilibrium bears.

Each layer is quantised alone, and what that moves of the end of a solve is its error: where the
iteration hardly contracts, a small error of every evaluation adds up to a large one. The few that
cost the most for the time they save, most of them those of the smallest maps, stay in floating
point: half of the error goes with a twentieth of the multiply-adds. The others are quantised
together, and more go back to floating point until a refined solve ends where one in full precision
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edge_mdeq.errors import DataError, ParityError
from mdeq_export.answers import Answer, distance
from mdeq_export.compose import IR_VERSION, Pieces
from mdeq_export.passes import run_passes
from mdeq_export.quantize.gate import bound
from mdeq_export.quantize.insert import LayerRange, Quantize
from mdeq_export.quantize.iteration import Iteration, session_of
from mdeq_export.quantize.layers import Layer, find_layers
from mdeq_export.quantize.observe import Observer, visits

__all__ = ["Calibration", "LayerReport", "Ranges", "calibrate", "observe", "quantised"]

TRIED = 2  # images that single layers are judged on
SPARED = 0.05  # of the multiply-adds, that stay in floating point whatever the bound says
LEAST = 0.5  # of the multiply-adds, that stay integer: below, int8 would gain nothing
LONG = 8  # evaluations, of a solve in which a layer's error shows
HEADROOM = 0.9  # of what the gate allows beyond single precision: it looks at other images too
READOUT_CHANGE = 0.02  # of any score, up to which a readout computes in integers

Array = NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Ranges:
    """What was observed.

    Attributes:
        cell, readout: by layer; a readout that stays in floating point has none.
        visits: states that were looked at.
    """

    cell: dict[str, LayerRange]
    readout: dict[str, LayerRange]
    visits: int


@dataclass(frozen=True)
class LayerReport:
    """What is known of a layer.

    Attributes:
        name: of its weights.
        low, high: of what it convolves.
        cut_off: the share of what it convolves that lies outside these.
        constant: channels that always give the same number.
        error: what its rounding alone moves of the end of a cold solve, relative.
        integer: whether it computes in integers.
    """

    name: str
    low: float
    high: float
    cut_off: float
    constant: int
    error: float
    integer: bool


@dataclass(frozen=True)
class Calibration:
    """The outcome for one scheme; a profile's entry of the summary in the bundle.

    Attributes:
        scheme: "asymmetric uint8" or "symmetric int8", of activations.
        visits: states that ranges were taken from.
        layers: of the cell, the one with the largest error first.
        readout: whether the readout computes in integers too.
        evaluations: that the next three figures are of, cold: state error against the converged
            state in single precision, relative, mean over the images that were tried.
        fp32, int8, refined: in single precision, in int8, and with the last ones in single
            precision; None where there are no refined rungs.
    """

    scheme: str
    visits: int
    layers: tuple[LayerReport, ...]
    readout: bool
    evaluations: int
    fp32: float
    int8: float
    refined: float | None

    @property
    def names(self) -> list[str]:
        """The layers of the cell that compute in integers."""
        return [layer.name for layer in self.layers if layer.integer]


def observe(pieces: Pieces, images: NDArray[np.uint8], scores: bool, progress: Progress) -> Ranges:
    """Ranges of all layers, of states that solves of ``images`` (count, H, W, 3) visit.

    Args:
        pieces: lowered for ONNX Runtime.
        images: RGB uint8.
        scores: whether the readout gives scores: then its layers are observed too. A mask's is a
            1x1 convolution in tiles, which is not worth it.
        progress: told what is being done.

    Raises:
        DataError: a solve ends in NaN or infinity.
    """
    iteration = Iteration(pieces)
    cell, readout = Observer(pieces.cell), Observer(pieces.readout) if scores else None
    count = 0
    for visit in visits(iteration, images):
        count += 1
        progress(f"calibrating int8, state {count}")
        cell.look([visit.u, *visit.state])
        if readout is not None and visit.evaluations:
            readout.look(visit.state)
    ranges = cell.ranges()
    if not any(seen.high > seen.low for seen in ranges.values()):
        raise DataError("every state of the calibration images is zero: these weights compute none")
    return Ranges(ranges, readout.ranges() if readout is not None else {}, count)


def quantised(
    pieces: Pieces, ranges: Ranges, names: Iterable[str], readout: bool, symmetric: bool
) -> Pieces:
    """``pieces`` with an int8 cell in which ``names`` compute in integers, and maybe a readout."""
    cell = pieces.cell.clone()
    run_passes(cell, [Quantize(ranges.cell, list(names), symmetric)])
    read = None
    if readout:
        read = pieces.readout.clone()
        run_passes(read, [Quantize(ranges.readout, list(ranges.readout), symmetric)])
    return replace(pieces, int8_cell=cell, int8_readout=read)


def calibrate(
    pieces: Pieces,
    ranges: Ranges,
    goals: Sequence[tuple[NDArray[np.uint8], Answer]],
    counts: Sequence[int],
    refine: int,
    symmetric: bool,
    progress: Progress,
) -> Calibration:
    """Choose the layers for one scheme.

    Args:
        pieces: lowered for ONNX Runtime.
        ranges: from ``observe``.
        goals: images (H, W, 3) with their converged answers in single precision.
        counts: evaluations of the solves that are exported.
        refine: how many of each are in full precision; 0: none, and no bound is looked at.
        symmetric: int8 activations around zero, else uint8.
        progress: told what is being done.

    Raises:
        ParityError: the bound is missed however many layers stay in floating point.
    """
    trial, longest = Trial(pieces, ranges, goals, symmetric), max(counts)
    errors: dict[str, float] = {}
    layers = find_layers(pieces.cell)
    for layer in layers:
        progress(f"sensitivity of {layer.name}")
        errors[layer.name] = trial.alone(layer.name, min(longest, LONG))
    effort = {layer.name: work(layer) for layer in layers}
    order = sorted(errors, key=lambda name: -(errors[name] ** 2) / effort[name])
    judged = [count for count in sorted(counts) if count > refine > 0]
    base = {n: trial.solve_error([], ["fp32"] * n) for n in {*judged, longest}}
    refined: dict[int, float] = {}
    spared = spare(order, effort)
    order = spared + [name for name in order if name not in spared]
    kept = len(spared)
    while judged:
        progress(f"int8 with {len(order) - kept} of {len(order)} layers")
        refined = {
            n: trial.solve_error(order[kept:], ["int8"] * (n - refine) + ["fp32"] * refine)
            for n in judged
        }
        missed = [n for n in judged if refined[n] > bound(base[n], HEADROOM)]
        if not missed:
            break
        kept += 1 + (kept - len(spared)) // 2
        if sum(effort[name] for name in order[kept:]) >= LEAST * sum(effort.values()):
            continue
        n = missed[0]
        raise ParityError(
            f"int8: refined solves of {n} evaluations end {refined[n]:.2e} from the converged "
            f"state, those in fp32 {base[n]:.2e}; allowed is {bound(base[n]):.2e}, also with "
            f"the {kept} most harmful layers of {len(order)} in floating point. Calibrate on more "
            "of the images that it will see (--data), give --refine 2, or leave out --int8; "
            "nothing was written"
        )
    reports = [
        report(name, ranges.cell[name], errors[name], name in order[kept:]) for name in order
    ]
    return Calibration(
        scheme="symmetric int8" if symmetric else "asymmetric uint8",
        visits=ranges.visits,
        layers=tuple(sorted(reports, key=lambda layer: -layer.error)),
        readout=bool(ranges.readout) and trial.readout_change() <= READOUT_CHANGE,
        evaluations=longest,
        fp32=base[longest],
        int8=trial.solve_error(order[kept:], ["int8"] * longest),
        refined=refined.get(longest),
    )


def spare(order: Iterable[str], effort: Mapping[str, float]) -> list[str]:
    """The first of ``order`` that together have no more than ``SPARED`` of the multiply-adds."""
    spared, left = [], SPARED * sum(effort.values())
    for name in order:
        if effort[name] <= left:
            spared.append(name)
            left -= effort[name]
    return spared


def report(name: str, seen: LayerRange, error: float, integer: bool) -> LayerReport:
    """A layer's line."""
    low, high = (float(f"{end:.6g}") for end in (seen.low, seen.high))
    cut_off = float(f"{seen.cut_off:.3g}")
    return LayerReport(name, low, high, cut_off, seen.constant, float(f"{error:.4g}"), integer)


def work(layer: Layer) -> float:
    """Multiply-adds, which is what integers save; 1 where a size is open."""
    shapes = [value.shape for value in layer.outputs]
    maps = [list(shape)[2:] for shape in shapes if shape is not None]  # the batch may be open
    pixels = sum(float(np.prod([int(n) for n in sizes])) for sizes in maps) or 1.0  # type: ignore
    tensor = layer.kernel.const_value
    assert tensor is not None
    return pixels * float(tensor.size)


class Trial:
    """Errors of quantised pieces on a few images whose equilibria are known."""

    def __init__(
        self,
        pieces: Pieces,
        ranges: Ranges,
        goals: Sequence[tuple[NDArray[np.uint8], Answer]],
        symmetric: bool,
    ) -> None:
        self.pieces, self.ranges, self.symmetric = pieces, ranges, symmetric
        self.single = Iteration(pieces)
        self.goals = [(self.single.injection(image), goal.states) for image, goal in goals]
        self.known: tuple[tuple[str, ...], Iteration] | None = None

    def iteration(self, names: Sequence[str]) -> Iteration:
        """With these layers in integers; the last one is kept."""
        if self.known is None or self.known[0] != tuple(names):
            pieces = quantised(self.pieces, self.ranges, names, False, self.symmetric)
            self.known = tuple(names), Iteration(pieces, self.single)
        return self.known[1]

    def alone(self, name: str, evaluations: int) -> float:
        """How far a solve with one layer in integers ends from one in single precision."""
        iteration, errors = self.iteration([name]), []
        for u, _ in self.goals[:TRIED]:
            exact = self.single.solve(u, ["fp32"] * evaluations)
            errors.append(distance(iteration.solve(u, ["int8"] * evaluations), exact))
        return float(np.mean(errors))

    def solve_error(self, names: Sequence[str], precisions: Sequence[str]) -> float:
        """How far a cold solve ends from the converged state, relative."""
        iteration = self.iteration(names) if "int8" in precisions else self.single
        ends = [distance(iteration.solve(u, precisions), state) for u, state in self.goals]
        return float(np.mean(ends))

    def readout_change(self) -> float:
        """The most that integers change of any score, at the equilibria."""
        read = quantised(self.pieces, self.ranges, [], True, self.symmetric).int8_readout
        assert read is not None
        both = [session_of(whole(graph)) for graph in (self.pieces.readout, read)]
        names = [each.name for each in both[0].get_inputs()]
        most = 0.0
        for _, state in self.goals:
            exact, found = (s.run(None, dict(zip(names, state, strict=True)))[0] for s in both)
            most = max(most, float(np.abs(exact - found).max()))
        return most


def whole(graph: ir.Graph) -> ir.Model:
    """A piece as a model."""
    return ir.Model(graph.clone(), ir_version=IR_VERSION)
