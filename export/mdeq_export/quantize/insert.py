"""The pass that puts integers around convolutions: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import constant
from mdeq_export.quantize.grids import Grid, activation_grid, weight_grid
from mdeq_export.quantize.layers import Layer, find_layers

__all__ = ["LayerRange", "Quantize"]

Array = NDArray[np.float32]
INTEGERS = {np.dtype(np.uint8): ir.DataType.UINT8, np.dtype(np.int8): ir.DataType.INT8}


@dataclass(frozen=True, eq=False)
class LayerRange:
    """What was seen around a layer.

    Attributes:
        low, high: of what it convolves.
        lows, highs: (C_out,), of what it gives, per channel.
        cut_off: the share of what it convolves that lies outside.
    """

    low: float
    high: float
    lows: Array
    highs: Array
    cut_off: float = 0.0

    @property
    def constant(self) -> int:
        """How many channels give the same number always."""
        return int((self.lows == self.highs).sum())


class Quantize(GraphPass):
    """The layers named compute with integers; what lies between them stays in floating point.

    In the scheme for ONNX Runtime, uint8 activations, a layer's sums leave it as uint8 too, since
    only then is it one integer kernel. Each output channel gets a grid of its own: it is stretched
    to the common one by its weights' scales, shifted by the bias, and brought back by the
    DequantizeLinear, which costs nothing. In the symmetric scheme, for TensorRT, what a layer gives
    is floating point, and so is its bias.

    Args:
        ranges: by layer.
        names: the layers to quantise.
        symmetric: the scheme.
    """

    def __init__(
        self, ranges: Mapping[str, LayerRange], names: Collection[str], symmetric: bool
    ) -> None:
        self.ranges, self.names, self.symmetric = ranges, frozenset(names), symmetric

    def requires(self, graph: ir.Graph) -> str | None:
        for layer in find_layers(graph, self.names):
            if layer.name not in self.ranges:
                return f"no range of layer {layer.name!r} was observed"
        return None

    def call(self, graph: ir.Graph) -> bool:
        layers = find_layers(graph, self.names)
        if not layers:
            return False
        writer = Writer(graph)
        for layer in layers:
            seen = self.ranges[layer.name]
            grid = activation_grid(seen.low, seen.high, self.symmetric)
            for node in layer.nodes:
                value = node.inputs[0]
                assert value is not None
                node.replace_input_with(0, writer.rounded(value, grid))
            if self.symmetric:
                self.floating_ends(writer, layer)
            else:
                self.integer_ends(writer, layer, seen, grid)
        for layer in layers:
            if not layer.kernel.uses():
                del graph.initializers[str(layer.kernel.name)]
        return True

    def ensures(self, graph: ir.Graph) -> str | None:
        for layer in find_layers(graph, self.names):
            return f"layer {layer.name!r} still has a kernel in floating point"
        return None

    def floating_ends(self, writer: Writer, layer: Layer) -> None:
        """An int8 kernel; sums and bias in floating point."""
        kernel = numbers(layer.kernel)
        grid = weight_grid(kernel, symmetric=True)
        value = writer.weights(f"{layer.name}.weight", grid.quantise(kernel), grid)
        for node in layer.nodes:
            node.replace_input_with(1, value)

    def integer_ends(self, writer: Writer, layer: Layer, seen: LayerRange, taken: Grid) -> None:
        """A kernel, a bias and sums that one integer kernel takes and gives."""
        kernel = numbers(layer.kernel)
        given = layer.nodes[0].inputs[2] if len(layer.nodes[0].inputs) > 2 else None
        bias = np.zeros(len(kernel), np.float32) if given is None else numbers(given)
        own = activation_grid(seen.lows, seen.highs, symmetric=False)  # of each output channel
        stretch = (1 / own.scale).astype(np.float32)  # then every channel has a step of one
        middle = 128
        common = Grid(np.ones((), np.float32), np.array(middle, np.uint8))
        grid = weight_grid(kernel)
        integers = grid.quantise(kernel)
        scale = (grid.scale * stretch).astype(np.float32)
        stretched = Grid(scale, grid.zero_point, grid.limit)
        weights = writer.weights(f"{layer.name}.weight", integers, stretched)
        shift = bias * stretch + own.zero_point.astype(np.float32) - middle
        sums = (scale * taken.scale).astype(np.float32)
        offset = writer.bias(f"{layer.name}.bias", shift, sums)
        for node in layer.nodes:
            node.replace_input_with(1, weights)
            replace_bias(node, offset)
            writer.read_out(layer.name, node, common, own)


def numbers(value: ir.Value) -> Array:
    """What a constant holds, float32."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def replace_bias(node: ir.Node, bias: ir.Value) -> None:
    """Give a convolution a bias, whether it had one or not."""
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias)


class Writer:
    """Makes the nodes; a value that several layers take is rounded once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[ir.Value, bytes, bytes], ir.Value] = {}

    def rounded(self, value: ir.Value, grid: Grid) -> ir.Value:
        """``value`` on a grid, in floating point again."""
        key = (value, grid.scale.tobytes(), grid.zero_point.tobytes())
        if key not in self.known:
            quantize = self.node("QuantizeLinear", value, self.parameters(grid))
            integer = quantize.outputs[0]
            integer.shape = value.shape
            integer.type = ir.TensorType(INTEGERS[grid.zero_point.dtype])
            self.put_behind(value, quantize)
            back = self.node("DequantizeLinear", integer, self.parameters(grid))
            back.outputs[0].shape, back.outputs[0].type = value.shape, FLOAT
            self.graph.insert_after(quantize, back)
            self.known[key] = back.outputs[0]
        return self.known[key]

    def read_out(self, name: str, node: ir.Node, common: Grid, own: Grid) -> None:
        """Let all that used a convolution's output use it from uint8, each channel on its grid."""
        value = node.outputs[0]
        uses = list(value.uses())
        quantize = self.node("QuantizeLinear", value, self.parameters(common))
        integer = quantize.outputs[0]
        integer.shape, integer.type = value.shape, ir.TensorType(ir.DataType.UINT8)
        self.graph.insert_after(node, quantize)
        scale = constant(self.graph, f"{name}.output_scale", own.scale)
        zero = constant(self.graph, f"{name}.output_zero", own.zero_point)
        back = self.node("DequantizeLinear", integer, [scale, zero], axis=1)
        back.outputs[0].shape, back.outputs[0].type = value.shape, FLOAT
        self.graph.insert_after(quantize, back)
        for user, index in uses:
            user.replace_input_with(index, back.outputs[0])
        for k, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[k] = back.outputs[0]

    def weights(self, name: str, integers: np.ndarray, grid: Grid) -> ir.Value:
        """A kernel, in floating point for whoever takes it: per output channel."""
        stored = constant(self.graph, f"{name}_int8", integers)
        scale = constant(self.graph, f"{name}_scale", grid.scale)
        zero = constant(self.graph, f"{name}_zero", grid.zero_point)
        return self.constant_restored(stored, [scale, zero])

    def bias(self, name: str, numbers: Array, scale: Array) -> ir.Value:
        """A bias in the steps of the sums, int32."""
        limit = 2.0**31 - 1
        integers = np.clip(np.rint(numbers / scale.astype(np.float64)), -limit, limit)
        stored = constant(self.graph, f"{name}_int32", integers.astype(np.int32))
        return self.constant_restored(stored, [constant(self.graph, f"{name}_scale", scale)])

    def constant_restored(self, stored: ir.Value, parameters: list[ir.Value]) -> ir.Value:
        node = self.node("DequantizeLinear", stored, parameters, axis=0)
        assert stored.const_value is not None
        node.outputs[0].shape = ir.Shape(stored.const_value.shape.numpy())
        node.outputs[0].type = FLOAT
        self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    def parameters(self, grid: Grid) -> list[ir.Value]:
        """Scale and zero point of a grid for a whole tensor, shared by all that are equal."""
        scale, zero = np.float32(grid.scale), grid.zero_point[()]
        kind = zero.dtype.name
        return [
            constant(self.graph, f"scale_{float(scale).hex()}", np.asarray(scale)),
            constant(self.graph, f"zero_{kind}_{int(zero)}", np.asarray(zero)),
        ]

    def node(
        self, operator: str, value: ir.Value, parameters: list[ir.Value], **attributes: int
    ) -> ir.Node:
        return ir.node(operator, [value, *parameters], attributes)

    def put_behind(self, value: ir.Value, node: ir.Node) -> None:
        """As early as may be."""
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)


FLOAT = ir.TensorType(ir.DataType.FLOAT)
