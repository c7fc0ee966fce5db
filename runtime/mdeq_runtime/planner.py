"""What a model will take of memory, before anything is loaded, and which form of it fits.

A solve with a fixed number of evaluations is one graph, or parts: a further evaluation in a graph
costs it some 270 nodes, while parts repeat one evaluation and keep what passes between them in
buffers. Which of the two is smaller depends on the solver's history, the number of evaluations and
the size of the image. All figures are upper bounds, in bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_mdeq.bundle import Manifest, Profile, TensorSpec
from edge_mdeq.errors import ConfigError, EngineError, MemoryLimitError
from mdeq_runtime.backends import Footprint
from mdeq_runtime.policies import FixedIterations, Policy
from mdeq_runtime.solving import fixed_chains

__all__ = ["Choice", "Form", "Need", "choices", "parse_bytes", "pick", "table"]

Form = Literal["graph", "parts"]
UNITS = {"": 1, "B": 1}
UNITS |= {f"{p}B": 1000**k for k, p in enumerate("KMG", 1)}
UNITS |= {f"{p}IB": 1024**k for k, p in enumerate("KMG", 1)}
MIB = 2**20


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of the process.

    Attributes:
        base: what the process holds already, interpreter and libraries.
        library: what the backend's library adds when it first runs.
        graphs: weights and nodes, as the backend holds them.
        working: the values of the largest graph while it runs, or what loading takes for a moment.
        buffers: image, answer, and states twice, of every stream; with parts the injection and the
            solver's history twice as well.
        frames: one and its answer at the same size, and what source and sinks hold.
    """

    base: int
    library: int
    graphs: int
    working: int
    buffers: int
    frames: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Choice:
    """A way to run a policy: which graphs, and what they need."""

    form: Form
    graphs: tuple[str, ...]
    need: Need


def choices(
    manifest: Manifest,
    profile: Profile,
    footprint: Callable[[Sequence[str]], Footprint],
    policy: Policy,
    carry: bool,
    *,
    base: int,
    others: Sequence[str] = (),
    buffered: int = 0,
    frame: tuple[int, int] | None = None,
    beside: int = 0,
    confidence: bool = False,
) -> list[Choice]:
    """Every form that can run ``policy``, the usual one first.

    Args:
        manifest, profile: of the bundle.
        footprint: the backend's, of graphs that it would load.
        policy, carry: of the session.
        base: bytes that the process held before anything was loaded.
        others: graphs that other streams run.
        buffered: bytes of the buffers of other streams.
        frame: (height, width) of the source; None: the model's.
        beside: bytes that the source and the sinks hold.
        confidence: whether answers have a map of it at the frame's size.

    Raises:
        SessionError: the bundle's rungs cannot run the policy.
        EngineError: the usual form's engines were not built.
    """
    forms: dict[Form, list[str]] = {}
    if isinstance(policy, FixedIterations):
        warm, cold = fixed_chains(profile.rungs, policy, carry)
        forms["graph"] = sorted({rung.graph for rung in (*warm, *cold)})
    if profile.parts:
        parts = profile.parts[0]
        single = min(parts.advance, key=lambda rung: rung.evaluations)
        forms["parts"] = [parts.inject, single.graph, parts.readout]
    height, width = frame or manifest.input.size
    frames = beside + 3 * height * width
    if manifest.output.kind != "scores":
        frames += mask_bytes(manifest.input.size, (height, width), confidence)
    found: list[Choice] = []
    for form, graphs in forms.items():
        try:
            took = footprint([*graphs, *(name for name in others if name not in graphs)])
        except EngineError:
            if not found:
                raise
            continue  # the usual form can run; for another one nobody has built engines
        need = Need(
            base=base,
            library=took.library,
            graphs=took.graphs,
            working=took.working,
            buffers=buffered + buffer_bytes(manifest, form),
            frames=frames,
        )
        found.append(Choice(form, tuple(graphs), need))
    return found


def mask_bytes(model: tuple[int, int], frame: tuple[int, int], confidence: bool) -> int:
    """Of a mask and its confidence on their way from the model's (height, width) to the frame's."""
    (rows, columns), (height, width) = model, frame
    if model == frame:
        return height * width * (1 + 4 * confidence)
    halfway = rows * width  # as wide as the frame is
    return height * width * (1 + 4 * confidence) + max(halfway, 4 * rows * columns * confidence)


def buffer_bytes(manifest: Manifest, form: Form) -> int:
    """What a stream holds: see ``Need.buffers``."""
    states = total_bytes(manifest.states)
    ends = (manifest.input.tensor, manifest.output.tensor, manifest.residual)
    whole = total_bytes(ends) + 2 * states
    if manifest.confidence is not None:
        whole += total_bytes((manifest.confidence,))
    if form == "parts":
        whole += total_bytes((manifest.injection,)) + 2 * total_bytes(manifest.history)
        whole += 0 if manifest.values == manifest.state_outputs else states
    return whole


def total_bytes(specs: Sequence[TensorSpec]) -> int:
    """Of tensors for one image."""
    return sum(
        math.prod(abs(n) for n in spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs
    )


def pick(found: Sequence[Choice], limit: int, name: str) -> Choice:
    """The first choice that fits into ``limit`` bytes.

    Raises:
        MemoryLimitError: none does; with a table of what each needs.
    """
    for choice in found:
        if choice.need.total <= limit:
            return choice
    least = min(choice.need.total for choice in found)
    raise MemoryLimitError(
        f"{name} does not fit into {limit / MIB:.0f} MiB; the least it needs is "
        f"{math.ceil(least / MIB)} MiB:\n{table(found)}\n"
        "Give it more, a smaller --imgsz at export, or a graph cache (graphs as this machine runs "
        "them need less)"
    )


def table(found: Sequence[Choice]) -> str:
    """What each choice needs, in MiB, as lines of text."""
    columns = [*vars(found[0].need), "total"]
    lines = ["  form   " + "".join(f"{column:>9}" for column in columns)]
    for choice in found:
        figures = [*vars(choice.need).values(), choice.need.total]
        cells = "".join(f"{figure / MIB:9.1f}" for figure in figures)
        lines.append(f"  {choice.form:7}{cells}")
    return "\n".join(lines)


def parse_bytes(text: str | int, what: str = "memory limit") -> int:
    """``"256MiB"``, ``"1.5 GB"``, ``"300000000"`` or a number as bytes; messages call it ``what``.

    Raises:
        ConfigError: anything else, or nothing positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    unit = UNITS.get(match[2]) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise ConfigError(
            f"{what} {text!r} makes no sense; write it as 256MiB, 1.5GB or a number of bytes"
        )
    return size
