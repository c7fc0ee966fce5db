"""How the doubles run engines: the graph that an engine names, by ONNX Runtime, on device memory.

``execute_async_v3`` queues a run on a stream of ``fake_cuda``; nothing happens until the stream is
synchronised, so a result that is read too early is not there.
"""

from __future__ import annotations

import json
import weakref
import zlib
from functools import cached_property
from typing import Any, ClassVar

import fake_cuda
import numpy as np
from tensorrt_models import Crash, Logs, Plain

DTYPES = {"float": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int8": "INT8", "int32": "INT32"}


class Runtime(Logs):
    def __init__(self, double: Any, **given: Any) -> None:
        super().__init__(double, **given)
        if not double.has_device:
            raise Crash("Runtime without a device")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        try:
            text, check = bytes(serialized_engine).rsplit(b"\n", 1)
            facts = json.loads(text)
            if zlib.crc32(text) != int(check) or facts["version"] != self.double.version:
                raise ValueError("version tag does not match")
        except ValueError as error:
            self.complain(f"Serialization assertion failed: {error}")
            return None
        engine = ICudaEngine(self.double, logger=self.logger, facts=facts)
        return self.double.wrap("ICudaEngine", engine)


class ICudaEngine(Plain):
    def __init__(self, double: Any, **given: Any) -> None:
        super().__init__(double, **given)
        self.streamable_weights_size = self.facts["streamable"]
        self.weight_streaming_budget_v2 = self.streamable_weights_size
        self.num_layers, self.num_optimization_profiles, self.name = 3, 1, self.facts["graph"]

    @cached_property
    def session(self) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return ort.InferenceSession(
            self.facts["graph"], options, providers=["CPUExecutionProvider"]
        )

    @cached_property
    def tensors(self) -> dict[str, tuple[str, Any]]:
        """By name: the TensorIOMode, and what ONNX Runtime says of it."""
        inputs = {value.name: ("INPUT", value) for value in self.session.get_inputs()}
        return inputs | {value.name: ("OUTPUT", value) for value in self.session.get_outputs()}

    @property
    def device_memory_size_v2(self) -> int:
        streamed = self.weight_streaming_budget_v2 < self.streamable_weights_size
        return int(self.facts["memory"]) + (1024 if streamed else 0)

    @property
    def device_memory_size(self) -> int:
        return self.device_memory_size_v2

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return getattr(self.double.module.TensorIOMode, self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.tensors[name][1].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self.tensors[name][1].type.removeprefix("tensor(").rstrip(")")
        return getattr(self.double.module.DataType, DTYPES[kind])

    def create_engine_inspector(self) -> Any:
        return self.double.wrap("EngineInspector", EngineInspector(self.double))

    def create_runtime_config(self) -> Any:
        return self.double.wrap("IRuntimeConfig", Plain(self.double))

    def create_execution_context_without_device_memory(self) -> Any:
        return self.context(owns_memory=False)

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any:
        return self.context(getattr(strategy, "name", "STATIC") != "USER_MANAGED")

    def context(self, owns_memory: bool) -> Any:
        context = IExecutionContext(self.double, logger=self.logger, owner=self)
        context.owns_memory = owns_memory
        return self.double.wrap("IExecutionContext", context)


class EngineInspector(Plain):
    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - as TensorRT has it
        if format.name == "ONELINE":
            return "conv\nnorm\nadd"
        layers = [{"Name": name, "LayerType": name} for name in ("conv", "norm", "add")]
        return json.dumps({"Layers": layers, "Bindings": []})


class IExecutionContext(Plain):
    failed: ClassVar = {
        "execute_async_v3": False,
        "set_tensor_address": False,
        "set_input_shape": False,
    }

    def __init__(self, double: Any, **given: Any) -> None:
        super().__init__(double, **given)
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    @property
    def device_memory(self) -> int:
        return self.memory[0] if self.memory else 0

    @device_memory.setter
    def device_memory(self, pointer: int) -> None:
        self.memory = int(pointer), self.owner.device_memory_size

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = int(memory), size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return all(
            d in (-1, s) for d, s in zip(self.owner.get_tensor_shape(name), shape, strict=True)
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = int(memory)
        return name in self.owner.tensors

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = fake_cuda.stream_of(stream_handle)
        missing = self.owner.tensors.keys() - self.addresses.keys()
        if missing:
            self.complain(f"Address is not set for {sorted(missing)}")
            return False
        size = self.memory[1] if self.memory else 0
        if not self.owns_memory and size < self.owner.device_memory_size:
            self.complain("device memory is not set, or too small")
            return False
        addresses, memory = dict(self.addresses), None if self.owns_memory else self.memory
        itself = weakref.ref(self)

        def work() -> None:  # perhaps again and again, from a captured graph
            context = itself()
            if context is None:
                raise fake_cuda.Misuse("what an engine queued runs after the engine is gone")
            if memory is not None:
                fake_cuda.view(*memory)
            context.compute(addresses)

        stream.enqueue(work)
        return True

    def compute(self, addresses: dict[str, int]) -> None:
        """Run the graph on device memory as it is now."""

        def array(name: str, value: Any) -> Any:
            shape = [d if isinstance(d, int) else 1 for d in value.shape]
            dtype = np.dtype(np_name(value.type))
            size = int(np.prod(shape)) * dtype.itemsize
            return fake_cuda.view(addresses[name], size).view(dtype).reshape(shape)

        inputs = {v.name: array(v.name, v) for v in self.owner.session.get_inputs()}
        names = [v.name for v in self.owner.session.get_outputs()]
        results = self.owner.session.run(names, {n: v.copy() for n, v in inputs.items()})
        for value, result in zip(self.owner.session.get_outputs(), results, strict=True):
            array(value.name, value)[...] = result


def np_name(kind: str) -> str:
    name = kind.removeprefix("tensor(").rstrip(")")
    return "float32" if name == "float" else name
