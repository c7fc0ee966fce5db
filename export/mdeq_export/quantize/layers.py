"""The convolutions of a piece, by the weights that they bear."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Layer", "find_layers"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution, or several that share a kernel (the tiles of a readout).

    Attributes:
        name: of its weights, such as ``cell.blocks.0.conv1``.
        kernel: (C_out, C_in, h, w), constant.
        nodes: the convolutions.
    """

    name: str
    kernel: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """What is convolved."""
        return tuple(dict.fromkeys(x for n in self.nodes if (x := n.inputs[0]) is not None))

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """What comes out."""
        return tuple(node.outputs[0] for node in self.nodes)


def find_layers(graph: ir.Graph, names: Collection[str] | None = None) -> list[Layer]:
    """The layers of a graph whose kernels and biases are constants, in order; of ``names`` only."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        constants = node.inputs[1:]
        if node.op_type == "Conv" and all(
            v is None or v.const_value is not None for v in constants
        ):
            kernel = node.inputs[1]
            assert kernel is not None
            found.setdefault(kernel, []).append(node)
    layers = [
        Layer(str(kernel.name).removesuffix(".weight"), kernel, tuple(nodes))
        for kernel, nodes in found.items()
    ]
    return [layer for layer in layers if names is None or layer.name in names]
