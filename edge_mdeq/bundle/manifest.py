"""The manifest of a bundle, field by field. Whatever a device needs to know stands here.

Its checks hold for every manifest that is made, and for every one that is read (``decoding``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from edge_mdeq.bundle.verification import Verification
from edge_mdeq.config import Provenance
from edge_mdeq.errors import ConfigError

__all__ = [
    "BUNDLE_SUFFIX",
    "SCHEMA",
    "FileEntry",
    "GraphCost",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Parts",
    "Profile",
    "Rung",
    "SolverSpec",
    "Step",
    "TensorSpec",
    "WeightsFile",
    "encode_manifest",
]

BUNDLE_SUFFIX = ".mdeq"
FORMAT = "edge-mdeq-bundle"
SCHEMA = 1
REQUIRES = "0.1.0"  # the first edge-mdeq that reads what this one writes

BYTES = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int32": 4, "float32": 4, "int64": 8}
MOST_EVALUATIONS = 10_000  # of a rung or a frame, whose plan counts up to it
MOST_DIMENSIONS = 8  # of a tensor; NumPy has a limit of its own, and no error of ours for it
LARGEST = 2**32  # bytes of a tensor; the readout of 1024 x 2048 pixels would have 159 MB
SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){0,3}")


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a graph; a first dimension of -1 is a batch of any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in BYTES:
            raise ConfigError(
                f"tensor {self.name!r} has the type {self.dtype!r}; known: {', '.join(BYTES)}"
            )
        batch, *rest = self.shape or (0,)
        if (
            (batch < 1 and batch != -1)
            or min(rest, default=1) < 1
            or len(rest) >= MOST_DIMENSIONS
            or self.bytes > LARGEST
        ):
            raise ConfigError(
                f"tensor {self.name!r} has the shape {list(self.shape)}, which is none, or more "
                f"than {LARGEST} bytes"
            )

    @property
    def bytes(self) -> int:
        """What it takes; a batch of any size counts as one."""
        return BYTES[self.dtype] * abs(math.prod(self.shape))


@dataclass(frozen=True)
class InputSpec:
    """The image input: uint8 NHWC RGB. ``mean`` and ``std`` are applied inside the graph."""

    tensor: TensorSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.tensor.shape[1], self.tensor.shape[2]


@dataclass(frozen=True)
class OutputSpec:
    """The task's answer: a uint8 mask of class indices, or scores that sum to one."""

    tensor: TensorSpec
    kind: Literal["class_indices", "scores"]


@dataclass(frozen=True)
class SolverSpec:
    """The solver that the graphs unroll.

    Attributes:
        name, settings: as ``edge_mdeq.solvers.make_solver`` takes them.
        best: whether a graph returns the iterate with the lowest residual instead of its last.
    """

    name: str
    settings: dict[str, float] = field(default_factory=dict)
    best: bool = False


@dataclass(frozen=True)
class Step:
    """So many evaluations of f in one precision."""

    precision: str
    evaluations: int


@dataclass(frozen=True)
class Rung:
    """One graph of the ladder.

    Attributes:
        steps: what it does, in order; the evaluations of f that it counts are their sum.
        graph: the ``solve`` or ``advance`` graph, relative to the bundle.
    """

    steps: tuple[Step, ...]
    graph: str

    def __post_init__(self) -> None:
        if not self.steps or min(step.evaluations for step in self.steps) < 1:
            raise ConfigError(f"rung {self.graph!r} needs steps of at least one evaluation each")
        if self.evaluations > MOST_EVALUATIONS:
            raise ConfigError(
                f"rung {self.graph!r} claims {self.evaluations} evaluations, more than "
                f"{MOST_EVALUATIONS}: no graph has so many"
            )

    @property
    def evaluations(self) -> int:
        """N, evaluations of f in all."""
        return sum(step.evaluations for step in self.steps)


@dataclass(frozen=True)
class WeightsFile:
    """The external data that all graphs of one precision in one profile share."""

    precision: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Parts:
    """The stages of a solve as graphs of their own: a host loop stops where it likes.

    Attributes:
        precision: of their weights.
        inject: ``image -> injection``.
        advance: ``injection, states, history -> values, states, history, residual``, a rung each.
        readout: ``values -> output [, confidence]``.
        pieces: what further rungs are composed of, by the short name of the piece.
        residual_floor: the relative residual that this precision cannot get below; None where it is
            that of single precision.
    """

    precision: str
    inject: str
    advance: tuple[Rung, ...]
    readout: str
    pieces: dict[str, str]
    residual_floor: float | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here."""
        graphs = [rung.graph for rung in self.advance]
        return (self.inject, *graphs, self.readout, *self.pieces.values())


@dataclass(frozen=True)
class GraphCost:
    """What running a graph takes, counted from the graph; an open batch counts as one image.

    Attributes:
        nodes: how many there are.
        weights: bytes of all that it uses of the weights file and of its own constants.
        largest_weight: bytes of the largest of them.
        values: the most bytes that its values take at once beside weights, inputs and outputs, if
            each is freed after its last use.
        packed: bytes of 8-bit kernels, each as often as a node convolves with it.
    """

    nodes: int
    weights: int
    largest_weight: int
    values: int
    packed: int = 0

    def __post_init__(self) -> None:
        if min(self.nodes, self.weights, self.largest_weight, self.values, self.packed) < 0:
            raise ConfigError("a graph cannot take less than nothing")


@dataclass(frozen=True)
class Profile:
    """One lowering of the graphs, for one kind of runtime.

    Attributes:
        opset: of all its graphs.
        weights: one file per precision.
        rungs: the whole solve in one graph each.
        parts: the same in parts, per precision.
        flags: what a builder of engines must set beside, such as "FP16" where precision is not in
            the graph.
        costs: of every graph that is named here, pieces excepted; empty in older bundles.
    """

    opset: int
    weights: tuple[WeightsFile, ...]
    rungs: tuple[Rung, ...]
    parts: tuple[Parts, ...] = ()
    flags: tuple[str, ...] = ()
    costs: dict[str, GraphCost] = field(default_factory=dict)

    @property
    def residual_floor(self) -> float:
        """The largest of its parts; no tolerance below it can be met."""
        return max((parts.residual_floor or 0.0 for parts in self.parts), default=0.0)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Every graph that runs: pieces are only there to compose further ones."""
        parts = [
            name
            for part in self.parts
            for name in (part.inject, *(rung.graph for rung in part.advance), part.readout)
        ]
        return (*(rung.graph for rung in self.rungs), *parts)

    @property
    def all_graphs(self) -> tuple[str, ...]:
        """Those and the pieces."""
        parts = [name for part in self.parts for name in part.files]
        return (*(rung.graph for rung in self.rungs), *parts)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is named here."""
        own = (*(w.file for w in self.weights), *(r.graph for r in self.rungs))
        return (*own, *(name for part in self.parts for name in part.files))


@dataclass(frozen=True)
class FileEntry:
    """Identity of one file of the bundle."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not SHA256.fullmatch(self.sha256) or self.bytes < 0:
            raise ConfigError(f"{self.bytes} bytes with SHA-256 {self.sha256!r} are no file")


@dataclass(frozen=True)
class Manifest:
    """Everything a device must know about a bundle; ``decode_manifest`` validates it.

    ``confidence`` is a low-resolution map (B, H_0, W_0) of the winning class's probability. An
    ``advance`` graph takes ``injection``, ``states`` and ``history`` (zeros for an empty one), and
    gives ``values`` for the readout beside the next of both; where ``values`` are the
    ``state_outputs`` they are where the solve goes on as well. ``warnings`` are for every user of
    the bundle to see. ``tools`` are the versions of what traced and composed the graphs: with the
    same ones, the same weights give the same bytes. ``precision`` is what sessions use if nobody
    says otherwise; see ``edge_mdeq.bundle.precision``. ``requires`` is the first edge-mdeq that
    reads the bundle.
    """

    name: str
    created_by: str
    task: Literal["classification", "segmentation"]
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    input: InputSpec
    output: OutputSpec
    confidence: TensorSpec | None
    states: tuple[TensorSpec, ...]
    state_outputs: tuple[str, ...]
    residual: TensorSpec
    injection: TensorSpec
    values: tuple[str, ...]
    history: tuple[TensorSpec, ...]
    history_outputs: tuple[str, ...]
    solver: SolverSpec
    profiles: dict[str, Profile]
    verification: Verification
    provenance: Provenance
    files: dict[str, FileEntry]
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    precision: Literal["fp32", "int8", "refined"] = "fp32"
    requires: str = REQUIRES
    format: str = FORMAT
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if len(self.states) != len(self.state_outputs) or not self.states:
            raise ConfigError("states and state_outputs must have the same positive length")
        if len(self.values) != len(self.states):
            raise ConfigError("values and states must have the same length")
        if len(self.history) != len(self.history_outputs):
            raise ConfigError("history and history_outputs must have the same length")
        if len(self.input.tensor.shape) != 4 or self.input.tensor.shape[3] != 3:
            raise ConfigError(f"input shape {self.input.tensor.shape} is not (B, H, W, 3)")
        if self.output.kind == "class_indices" and len(self.labels) > 256:
            raise ConfigError(f"labels: {len(self.labels)} are more than a mask of uint8 can name")
        if any(not 0 <= value <= 255 for colour in self.palette for value in colour):
            raise ConfigError("palette: a colour is three numbers from 0 to 255")
        if not VERSION.fullmatch(self.requires):
            raise ConfigError(f"requires is {self.requires!r}, not a version such as {REQUIRES}")
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\\" in name:
                raise ConfigError(f"files: {name!r} is not a path inside the bundle")
        for profile_name, profile in self.profiles.items():
            if not profile.rungs:
                raise ConfigError(f"profiles.{profile_name} has no rungs")
            for name in (*profile.files, *profile.costs):
                if name not in self.files:
                    raise ConfigError(f"profiles.{profile_name}: {name!r} is not listed in files")
            for name in profile.all_graphs:
                if not name.endswith(".onnx"):  # by which ONNX Runtime tells its formats apart
                    raise ConfigError(f"profiles.{profile_name}: {name!r} is no .onnx file")

    @property
    def stream_bytes(self) -> int:
        """What the tensors of one stream take, as two sets of states take turns."""
        once = [self.input.tensor, self.output.tensor, self.residual, self.injection]
        once += [self.confidence] if self.confidence is not None else []
        twice = (*self.states, *self.history)
        return sum(spec.bytes for spec in once) + 2 * sum(spec.bytes for spec in twice)


def encode_manifest(manifest: Manifest) -> bytes:
    """Indented JSON, the same bytes for the same manifest."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
