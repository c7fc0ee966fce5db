"""Target profiles: how graphs are lowered for a kind of runtime.

| profile | opset | norm | precision | integers |
|---|---|---|---|---|
| ort-cpu | 21 | InstanceNormalization | in the graph | asymmetric uint8 |
| ort-cuda | 17 | InstanceNormalization | in the graph | asymmetric uint8 |
| tensorrt-8 | 17 | InstanceNormalization | builder flag | symmetric int8 |
| tensorrt-10 | 20 | InstanceNormalization | in the graph | symmetric int8 |
| tensorrt-11, tensorrt-rtx | 21 | GroupNormalization | in the graph | symmetric int8 |

For ort-cpu, norms behind a Relu are written out, for the exactness of their sums; gains and biases
are one node, and coarse maps are added before they are enlarged, for speed. ONNX Runtime's
CUDA provider lacks Reshape, Cast and Transpose of opset 21 in 1.23, and Resize of 19; what it lacks
runs on the CPU, in the midst of every norm. TensorRT 10 is the 10.3 of JetPack 6: its
parser knows opset 21's GroupNormalization from 10.9 on.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from edge_mdeq.errors import ConfigError
from mdeq_export.passes import (
    Anonymise,
    DropIdentity,
    ExactNorm,
    FloatBeforeUint8,
    GraphPass,
    Half,
    JoinAffine,
    KnownConstants,
    LowerGroupNorm,
    SetOpset,
    SumUpsampled,
)

__all__ = ["PROFILES", "TargetProfile", "lookup_profile"]

# What the pieces hold after the passes, by who needs it. All of these are in the parsers of
# TensorRT 8.5 and later (onnx-tensorrt's docs/operators.md) and in ONNX Runtime; a further one is a
# decision, to be checked there.
MODEL = frozenset(
    {"Add", "Cast", "Concat", "Conv", "Mul", "Relu", "Reshape", "Resize", "Transpose"}
    | {"ArgMax", "Exp", "Gemm", "MatMul", "Reciprocal", "Slice", "Sub"}  # readouts
    | {"ReduceMax", "ReduceMean", "ReduceSum", "Softmax"}
)
SOLVER = frozenset(
    {"Add", "Clip", "Div", "Mul", "ReduceSum", "Sqrt", "Sub"}  # residual, damping
    | {"Concat", "ReduceMax", "Reshape", "Sign", "Unsqueeze"}  # Anderson
    | {"Abs", "Greater", "Min", "Neg", "Reciprocal", "Split", "Where"}  # Broyden
    | {"IsNaN", "Less", "Or"}  # best iterate
)
DYNAMIC_BATCH = frozenset({"Expand", "Shape"})
INTEGERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
# Identity: a history that moves on as it is
COMMON = MODEL | SOLVER | DYNAMIC_BATCH | INTEGERS | {"Identity"}

Int8 = Literal["asymmetric uint8", "symmetric int8"]


@dataclass(frozen=True)
class TargetProfile:
    """How graphs for one kind of runtime look.

    Attributes:
        name: as in ``graphs/<name>/`` and on the command line.
        opset: of ONNX, that its graphs declare.
        passes: what every piece goes through, in order.
        operators: all that its graphs may hold.
        half: where FP16 is asked for: in the graph, or by the builder's flag (TensorRT 8, whose
            graphs are the same in both precisions).
        int8: of activations, the scheme that is fast on the runtime, or that it takes at all.
    """

    name: str
    opset: int
    passes: tuple[GraphPass, ...]
    operators: frozenset[str]
    half: Literal["graph", "flag"]
    int8: Int8

    @property
    def half_passes(self) -> tuple[GraphPass, ...]:
        """What a piece goes through that is to compute in FP16 (never those of a solver)."""
        return (*self.passes, Half()) if self.half == "graph" else self.passes


def onnx_runtime(
    name: str,
    opset: int,
    before: tuple[GraphPass, ...] = (),
    after: tuple[GraphPass, ...] = (),
    operators: frozenset[str] = frozenset(),
) -> TargetProfile:
    """ONNX Runtime: GroupNormalization costs it nine small operators."""
    return TargetProfile(
        name,
        opset=opset,
        passes=(Anonymise(), *before, LowerGroupNorm(), *after, DropIdentity(), SetOpset(opset)),
        operators=COMMON | {"InstanceNormalization"} | operators,
        half="graph",
        int8="asymmetric uint8",
    )


def tensorrt(name: str, opset: int, half: Literal["graph", "flag"] = "graph") -> TargetProfile:
    """TensorRT: from opset 21 on with its own GroupNormalization."""
    native = opset >= 21
    lowering = KnownConstants() if native else LowerGroupNorm()
    return TargetProfile(
        name,
        opset=opset,
        passes=(Anonymise(), lowering, DropIdentity(), FloatBeforeUint8(), SetOpset(opset)),
        operators=COMMON | {"GroupNormalization" if native else "InstanceNormalization"},
        half=half,
        int8="symmetric int8",
    )


PROFILES = {
    profile.name: profile
    for profile in (
        onnx_runtime(
            "ort-cpu",
            opset=21,
            before=(ExactNorm(),),
            after=(SumUpsampled(), JoinAffine()),
            operators=frozenset({"BatchNormalization"}),
        ),
        onnx_runtime("ort-cuda", opset=17),
        tensorrt("tensorrt-8", opset=17, half="flag"),
        tensorrt("tensorrt-10", opset=20),
        tensorrt("tensorrt-11", opset=21),
        tensorrt("tensorrt-rtx", opset=21),
    )
}


def lookup_profile(name: str) -> TargetProfile:
    """A profile by name.

    Raises:
        ConfigError: an unknown name; a near one is suggested.
    """
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown target {name!r}, known: {', '.join(PROFILES)}{hint}")
    return PROFILES[name]
