"""What flows through the convolutions while a solve iterates, not at a first pass alone.

An equilibrium model is fed its own outputs. A state of zero, the states on the way and those of a
solve that starts near its end look different, and a range has to hold all of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edge_mdeq.errors import DataError
from mdeq_export.compose import IR_VERSION
from mdeq_export.quantize.insert import LayerRange
from mdeq_export.quantize.iteration import Iteration, session_of
from mdeq_export.quantize.layers import find_layers

__all__ = ["Observer", "Visit", "visits"]

COLD, WARM, CUT = (0, 1, 2, 4, 7), (0, 1, 2), (0,)  # evaluations before a state is looked at
SHIFT = 0.02  # of the width: how far the picture moves before a warm start
KEPT = 1024  # numbers of a tensor that are kept of each look at it
MARGIN = 1.4  # of what a layer gave: other images give more, and to cut that off costs far more
# than steps that are 1.4 times as wide: the norm behind it spreads the loss over all channels
SHARES = np.linspace(1.0, 0.5, 26)  # of the widest range, tried for the least squared error

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Visit:
    """A state on the way of a solve, with its injection.

    Attributes:
        u: (1, C_0, H_0, W_0).
        state: (1, C_i, H_i, W_i) of every scale.
        start: "cold", "warm" or "cut".
        evaluations: that led to it.
    """

    u: Array
    state: list[Array]
    start: str
    evaluations: int


def visits(iteration: Iteration, images: NDArray[np.uint8]) -> Iterator[Visit]:
    """States that solves of ``images`` (count, H, W, 3) go through, cold and warm.

    Each image is solved from zero, then its picture, moved a little, from where that ended, as on a
    stream; and each but the first also from where the one before ended, as after a cut.

    Raises:
        DataError: a solve ends in NaN or infinity.
    """
    left: list[Array] | None = None
    for image in images:
        moved = np.roll(image, max(1, round(SHIFT * image.shape[1])), axis=1)
        if left is not None:
            yield from walk(iteration, image, left, "cut", CUT)
        left = yield from walk(iteration, image, None, "cold", COLD)
        left = yield from walk(iteration, moved, left, "warm", WARM)


def walk(
    iteration: Iteration,
    image: NDArray[np.uint8],
    start: list[Array] | None,
    name: str,
    looked_at: Sequence[int],
) -> Generator[Visit, None, list[Array]]:
    """One solve; returns where it ended."""
    u = iteration.injection(image)
    feeds = iteration.start(start)
    for k in range(max(looked_at) + 1):
        if k in looked_at:
            yield Visit(u, iteration.state(feeds), name, k)
        _, feeds = iteration.step(u, feeds)
    left = iteration.state(feeds)
    if not all(np.isfinite(z).all() for z in left):
        raise DataError(
            "the solve of a calibration image ends in NaN or infinity: these weights diverge under "
            "this solver, and no range can hold them; try --f-solver auto"
        )
    return left


class Seen:
    """What was seen of one tensor (1, C, H, W): the extremes of each channel, and a sample."""

    def __init__(self) -> None:
        self.lows: Array = np.array(np.inf)
        self.highs: Array = np.array(-np.inf)
        self.sample: list[Array] = []

    def add(self, x: Array, random: np.random.Generator) -> None:
        flat = x.reshape(x.shape[1], -1)
        lows, highs = flat.min(axis=1), flat.max(axis=1)
        self.lows, self.highs = np.minimum(self.lows, lows), np.maximum(self.highs, highs)
        places = random.integers(0, x.size, KEPT)
        self.sample.append(np.append(x.ravel()[places], [lows.min(), highs.max()]))


class Observer:
    """Runs a piece with all that its layers take and give as further outputs.

    Args:
        graph: the piece, in floating point.
    """

    def __init__(self, graph: ir.Graph) -> None:
        copy = graph.clone()
        self.layers = [
            (layer.name, [str(v.name) for v in layer.inputs], [str(v.name) for v in layer.outputs])
            for layer in find_layers(copy)
        ]
        self.inputs = [str(value.name) for value in copy.inputs]
        self.wanted = sorted({name for _, takes, gives in self.layers for name in takes + gives})
        own = {value.name for value in (*copy.inputs, *copy.outputs)}
        made = {value.name: value for node in copy for value in node.outputs}
        copy.outputs.extend(made[name] for name in self.wanted if name not in own)
        self.session: ort.InferenceSession = session_of(ir.Model(copy, ir_version=IR_VERSION))
        self.seen = {name: Seen() for name in self.wanted}
        self.random = np.random.default_rng(0)

    def look(self, values: Sequence[Array]) -> None:
        """Run the piece on its inputs, and take in what flows."""
        given = dict(zip(self.inputs, values, strict=True))
        names = [name for name in self.wanted if name not in given]
        found = given | dict(zip(names, self.session.run(names, given), strict=True))
        for name in self.wanted:
            self.seen[name].add(found[name], self.random)

    def ranges(self) -> dict[str, LayerRange]:
        """By layer."""
        found = {}
        for name, takes, gives in self.layers:
            sample = np.concatenate([x for t in takes for x in self.seen[t].sample])
            low, high = tightened(sample)
            lows = np.min([self.seen[g].lows for g in gives], axis=0)
            highs = np.max([self.seen[g].highs for g in gives], axis=0)
            cut_off = float(((sample < low) | (sample > high)).mean())
            found[name] = LayerRange(low, high, MARGIN * lows, MARGIN * highs, cut_off)
        return found


def tightened(sample: Array) -> tuple[float, float]:
    """The ends of a range that cuts off what rounds worse if it is kept; zero lies within."""
    low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)

    def error(low: float, high: float) -> float:
        step = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        return float(np.square(np.clip(np.rint(sample / step) * step, low, high) - sample).mean())

    high = min((high * share for share in SHARES), key=lambda end: error(low, end))
    low = min((low * share for share in SHARES), key=lambda end: error(end, high))
    return float(low), float(high)
