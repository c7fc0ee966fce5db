"""How the doubles behave: a parser that reads any file, a compiler that notes its name.

Each class here and in ``running_models`` is what stands behind TensorRT's class of the same name;
``doubles`` lets through only what the version has.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar


class Crash(BaseException):
    """Here the process of a real TensorRT would be gone."""


def engine_bytes(
    version: str, graph: Path, memory: int = 4096, streamable: int = 0, weights: int = 0
) -> bytes:
    """A serialised engine.

    Args:
        version: of the TensorRT that may load it.
        graph: which ONNX Runtime runs in its place.
        memory: bytes that a context needs.
        streamable: bytes of weights that need not stay on the device.
        weights: how many bytes there are to be in all, as filling.
    """
    facts = {"version": version, "graph": str(graph), "memory": memory, "streamable": streamable}
    text = json.dumps(facts | {"filling": "w" * weights}).encode()
    return text + b"\n%d" % zlib.crc32(text)


def open_classes(record: Callable[[str, dict[str, Any]], None]) -> dict[str, type]:
    """The classes that those who use TensorRT derive from, and the logger that comes with it."""

    class Severity:
        def __init__(self, name: str, value: int) -> None:
            self.name, self.value = name, value

        def __int__(self) -> int:
            return self.value

        __index__ = __int__

    names = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    members = {name: Severity(name, value) for value, name in enumerate(names)}
    for name, member in members.items():
        setattr(Severity, name, member)

    class ILogger:
        started = False

        def __init__(self) -> None:
            self.started = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity  # type: ignore[attr-defined]
    for name, member in members.items():
        setattr(ILogger, name, member)

    class Logger(ILogger):
        def __init__(self, min_severity: Any = members["WARNING"]) -> None:
            super().__init__()
            self.min_severity = min_severity
            self.heard: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.heard.append(msg)

    class IProgressMonitor:
        started = False

        def __init__(self) -> None:
            self.started = True

    return {"ILogger": ILogger, "Logger": Logger, "IProgressMonitor": IProgressMonitor}


class Plain:
    """Keeps what is assigned, and no more."""

    def __init__(self, double: Any, **given: Any) -> None:
        self.double = double
        vars(self).update(given)

    def complain(self, message: str) -> None:
        """Log an error as TensorRT would."""
        logger = getattr(self, "logger", None)
        if logger is not None:
            logger.log(self.double.module.ILogger.Severity.ERROR, message)


class Logs(Plain):
    """Is given a logger."""

    def __init__(self, double: Any, **given: Any) -> None:
        super().__init__(double, **given)
        if not getattr(given.get("logger"), "started", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")


class Builder(Logs):
    failed: ClassVar = {"is_network_supported": False}

    def create_network(self, flags: int = 0) -> Any:
        network = INetworkDefinition(self.double, name="", flags=flags)
        return self.double.wrap("INetworkDefinition", network)

    def create_builder_config(self) -> Any:
        return self.double.wrap("IBuilderConfig", IBuilderConfig(self.double, flags=0))

    def create_optimization_profile(self) -> Any:
        return self.double.wrap("IOptimizationProfile", Plain(self.double))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        """Three steps of one phase; None if the monitor says that it is to stop."""
        monitor = getattr(config.model, "progress_monitor", None)
        if monitor is not None:
            if not monitor.started:
                raise TypeError("IProgressMonitor.__init__() must be called")
            monitor.phase_start("Building Engine", None, 3)
            for step in range(3):
                if not monitor.step_complete("Building Engine", step):
                    monitor.phase_finish("Building Engine")
                    return None
            monitor.phase_finish("Building Engine")
        return engine_bytes(self.double.version, network.model.graph)


class IBuilderConfig(Plain):
    num_optimization_profiles = 0

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def add_optimization_profile(self, profile: Any) -> int:
        self.num_optimization_profiles += 1
        return self.num_optimization_profiles - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache == b"damaged":
            return None
        cache = ITimingCache(self.double, content=bytes(serialized_timing_cache))
        return self.double.wrap("ITimingCache", cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool = False) -> bool:
        self.cache = cache
        return bool(cache.model.content != b"of another device")

    def get_timing_cache(self) -> Any:
        return self.cache


class ITimingCache(Plain):
    def serialize(self) -> bytes:
        return self.content or b"timings"


class INetworkDefinition(Plain):
    graph: Path

    @cached_property
    def onnx_graph(self) -> Any:
        import onnx

        return onnx.load(str(self.graph), load_external_data=False).graph

    @property
    def nodes(self) -> list[Any]:
        return list(self.onnx_graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.onnx_graph.input)

    def get_input(self, index: int) -> Any:
        value = self.onnx_graph.input[index]
        sizes = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
        return self.double.wrap("ITensor", Plain(self.double, name=value.name, shape=sizes))

    @property
    def num_layers(self) -> int:
        return len(self.nodes)

    def get_layer(self, index: int) -> Any:
        return self.double.wrap("ILayer", ILayer(self.double, node=self.nodes[index]))


class ILayer(Plain):
    """A node. What computes indices has integers, all else single precision."""

    LAYERS: ClassVar = {"Conv": "CONVOLUTION", "Resize": "RESIZE", "Reshape": "SHUFFLE"}
    INTEGER: ClassVar = {"Shape", "ArgMax"}

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def type(self) -> Any:
        kind = self.LAYERS.get(self.node.op_type, "ELEMENTWISE")
        return getattr(self.double.module.LayerType, kind)

    @property
    def num_outputs(self) -> int:
        return len(self.node.output)

    def get_output(self, index: int) -> Any:
        integer = self.node.op_type in self.INTEGER
        kinds = self.double.module.DataType
        tensor = Plain(self.double, dtype=kinds.INT32 if integer else kinds.FLOAT)
        return self.double.wrap("ITensor", tensor)


class OnnxParser(Logs):
    """Takes every file that is one; ``fail`` makes it refuse."""

    failed: ClassVar = {"parse_from_file": False, "parse": False}
    num_errors = 0

    def complain(self, message: str) -> None:
        super().complain(message)
        self.num_errors = 1
        self.message = message

    def parse_from_file(self, model: str) -> bool:
        self.network.model.graph = Path(model)
        if Path(model).is_file():
            return True
        self.complain(f"Could not open file {model}")
        return False

    def get_error(self, index: int) -> Any:
        error = ParserError(self.double, message=self.message)
        return self.double.wrap("ParserError", error)


class ParserError(Plain):
    def desc(self) -> str:
        return self.message

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "node_7"

    def node_operator(self) -> str:
        return "Odd"

    def code(self) -> int:
        return 8

    def func(self) -> str:
        return "parseNode"

    def file(self) -> str:
        return "ModelImporter.cpp"

    def line(self) -> int:
        return 1
