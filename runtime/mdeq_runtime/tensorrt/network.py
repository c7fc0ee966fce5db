"""A graph as TensorRT's parser reads it; one parse serves several builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mdeq.errors import EngineError
from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["Network", "parse"]


@dataclass(frozen=True)
class Network:
    """A parsed graph. TensorRT's objects refer to each other and must live as long as this."""

    flavour: Flavour
    graph: Path
    builder: Any
    network: Any
    parser: Any

    @property
    def layers(self) -> int:
        return int(self.network.num_layers)

    def inputs(self) -> list[Any]:
        return [self.network.get_input(k) for k in range(self.network.num_inputs)]


def parse(flavour: Flavour, graph: Path, logger: Any) -> Network:
    """Read an ONNX file and the weights beside it.

    Args:
        flavour: whose parser reads it.
        graph: the ONNX file; its external data is looked for in its folder.
        logger: TensorRT's ``ILogger``, which must outlive what is returned.

    Raises:
        EngineError: the parser does not take it, with every node and operator that it complains of.
    """
    trt = flavour.module
    builder = trt.Builder(logger)
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, logger)
    # In 8.6 the default is a plugin, of a library that Python does not load by itself, and that no
    # compatible engine may hold.
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse_from_file(str(graph)):
        complaints = [parser.get_error(k) for k in range(parser.num_errors)]
        said = "\n".join(f"  {spell(flavour, error)}" for error in complaints) or "  (no reason)"
        raise EngineError(
            f"the parser of {flavour.name} does not take {graph}:\n{said}\n"
            f"Export the bundle again with --target {flavour.profile}"
        )
    return Network(flavour, graph, builder, network, parser)


def spell(flavour: Flavour, error: Any) -> str:
    """A parser's error with the node that it is about; 8.6 knows its number only."""
    if flavour.weakly_typed:
        return f"node {error.node()}: {error.desc()}"
    return f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
