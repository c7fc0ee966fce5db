"""ONNX Runtime on a GPU: states stay there, the image goes in, and the answer comes out.

Every tensor of a stream is made once, on the device, and bound to graphs by its address. Per frame
the image is copied there, and the output and the residual are copied back; nothing else crosses. A
provider that ONNX Runtime leaves out, or an operator that it puts on the CPU instead, is an error:
by itself it goes on in silence, many times slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, Manifest, TensorSpec
from edge_mdeq.errors import BundleError, DeviceError, MemoryLimitError, require
from mdeq_runtime.backends import Answer
from mdeq_runtime.backends.engine_cache import EngineCache
from mdeq_runtime.backends.ort import OrtBackend, Values, over_share
from mdeq_runtime.backends.places import CPU, Place, require_provider, share_arena

__all__ = ["DeviceState", "OrtGpuBackend"]


@dataclass(frozen=True)
class Zeros:
    """Zeros of a shape: a cold start, or an empty history. All of them are one buffer's bytes."""

    buffer: Any
    spec: TensorSpec
    place: Place

    def bind_input(self, binding: Any, name: str) -> None:
        binding.bind_input(
            name,
            self.place.tensors,
            self.place.index,
            np.dtype(self.spec.dtype),
            shape_of(self.spec),
            self.buffer.data_ptr(),
        )


@dataclass(eq=False)
class DeviceState:
    """A stream's tensors: two sets of state that take turns as input and output, and the rest.

    A cold start binds zeros in the place of the state, and an empty history zeros in the place of
    the history, so that neither needs a copy. What only a solve in parts needs is made at the first
    one.
    """

    ort: Any
    place: Place
    manifest: Manifest
    zeros: Any  # a buffer of them, as large as the largest state or part of a history
    owner: Any = None
    turn: int = 0  # which of the two sets is the input of the next run
    cold: bool = True
    empty: bool = True
    bindings: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        manifest = self.manifest
        image = manifest.input.tensor
        self.picture = np.zeros(shape_of(image), dtype=image.dtype)
        self.image = self.make(image)
        self.output, self.residual = self.make(manifest.output.tensor), self.make(manifest.residual)
        self.confidence = self.make(manifest.confidence) if manifest.confidence else None
        self.states = [[self.make(spec) for spec in manifest.states] for _ in range(2)]

    def make(self, spec: TensorSpec) -> Any:
        """A tensor on the device, of undefined content."""
        place, dtype = self.place, np.dtype(spec.dtype)
        return self.ort.OrtValue.ortvalue_from_shape_and_type(
            shape_of(spec), dtype, place.tensors, place.index
        )

    @cached_property
    def injection(self) -> Any:
        return self.make(self.manifest.injection)

    @cached_property
    def history(self) -> list[list[Any]]:
        return [[self.make(spec) for spec in self.manifest.history] for _ in range(2)]

    @cached_property
    def evaluated(self) -> list[Any]:
        """What ``advance`` evaluated last, where that is not what the solve goes on from."""
        if self.manifest.values == self.manifest.state_outputs:
            return []
        return [self.make(spec) for spec in self.manifest.states]

    def reset(self) -> None:
        """Back to z = 0, with an empty history."""
        self.cold = self.empty = True

    def restart(self) -> None:
        """Empty the solver's history."""
        self.empty = True

    def phase(self) -> tuple[int, bool, bool]:
        return self.turn, self.cold, self.empty

    def put(self, image: NDArray[np.uint8]) -> None:
        """Copy the image to the device; it is made contiguous on the way."""
        self.picture[0] = image
        self.image.update_inplace(self.picture)

    def solve_values(self) -> tuple[Values, Values]:
        inputs = {self.manifest.input.tensor.name: self.image} | self.state_in()
        return inputs, self.answer_out() | self.residual_out() | self.state_out()

    def inject_values(self) -> tuple[Values, Values]:
        manifest = self.manifest
        return {manifest.input.tensor.name: self.image}, {manifest.injection.name: self.injection}

    def advance_values(self) -> tuple[Values, Values]:
        manifest = self.manifest
        evaluated = dict(zip(manifest.values, self.evaluated, strict=False))
        history = self.empty_or(self.empty, manifest.history, self.history[self.turn])
        inputs = {manifest.injection.name: self.injection} | self.state_in() | history
        history_out = zip(manifest.history_outputs, self.history[1 - self.turn], strict=True)
        return inputs, evaluated | self.state_out() | dict(history_out) | self.residual_out()

    def readout_values(self) -> tuple[Values, Values]:
        names = [spec.name for spec in self.manifest.states]
        evaluated = dict(zip(names, self.evaluated, strict=False))
        return evaluated or self.state_in(), self.answer_out()

    def state_in(self) -> Values:
        return self.empty_or(self.cold, self.manifest.states, self.states[self.turn])

    def empty_or(self, empty: bool, specs: tuple[TensorSpec, ...], values: list[Any]) -> Values:
        """Zeros, or else ``values``, under their names."""
        pairs = zip(specs, values, strict=True)
        return {s.name: Zeros(self.zeros, s, self.place) if empty else v for s, v in pairs}

    def state_out(self) -> Values:
        return dict(zip(self.manifest.state_outputs, self.states[1 - self.turn], strict=True))

    def residual_out(self) -> Values:
        return {self.manifest.residual.name: self.residual}

    def answer_out(self) -> Values:
        values = {self.manifest.output.tensor.name: self.output}
        if self.manifest.confidence is not None:
            values[self.manifest.confidence.name] = self.confidence
        return values

    def solved(self) -> None:
        self.turn, self.cold = 1 - self.turn, False

    def advanced(self) -> None:
        self.solved()
        self.empty = False

    def residual_value(self) -> float:
        return float(self.residual.numpy()[0])

    def answer(self) -> Answer:
        """Copied from the device."""
        confidence = None if self.confidence is None else self.confidence.numpy()[0]
        return Answer(self.output.numpy()[0], confidence, self.residual_value())


class OrtGpuBackend(OrtBackend):
    """Runs the graphs of one profile in one place.

    Args:
        bundle: the opened bundle; each file's hash is checked before it is used.
        profile: which of its profiles.
        place: where; ``cuda`` and ``tensorrt`` make one.
        limit: bytes that weights and values may take there, of this process; the first backend of
            a process sets it. None: as many as there are.
        engines: what keeps engines between runs, where the place builds any.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: there is no such GPU.
        ConfigError: the process already uses it under another limit.
        BundleError: see ``OrtBackend``.
    """

    def __init__(
        self,
        bundle: Bundle,
        profile: str,
        place: Place,
        limit: int | None = None,
        engines: EngineCache | None = None,
    ) -> None:
        self.ort = require("onnxruntime", "onnxruntime-gpu", "running a bundle on a GPU")
        super().__init__(bundle, profile)
        self.name = f"ONNX Runtime, {place.name}"
        self.place, self.engines = place, engines
        self.memory = share_arena(self.ort, place.index, limit) if place.on_device else None

    def open(self, graph: str) -> Any:
        path = self.bundle.file(graph)
        if self.engines is not None:
            self.engines.announce(graph)
        try:
            session = self.ort.InferenceSession(
                str(path), self.options(), list(self.place.providers), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise self.explain(path, error) from error
        providers = running(session)
        if self.place.provider not in providers:
            require_provider(self.ort, self.place.provider)
            raise DeviceError(
                f"ONNX Runtime {self.ort.__version__} left its {self.place.provider} out and would "
                f"run {path} on {' and '.join(providers)}; its own messages above may say why"
            )
        if self.engines is not None:
            self.engines.record()
        return session

    def options(self) -> Any:
        """Settings for a session that keeps to the device, and needs one thread to feed it."""
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = options.enable_mem_reuse = False
        options.log_severity_level = 3
        if self.place.on_device:
            options.add_session_config_entry("session.use_env_allocators", "1")
        if self.place.provider != CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def explain(self, path: Path, error: Exception) -> Exception:
        """What ONNX Runtime's error means here."""
        text = str(error)
        if over_share(error):
            return MemoryLimitError(
                f"{path} does not fit into the memory of the device, or its share of it: {text}"
            )
        if "fallback to CPU EP" in text or "GPU requirements page" in text:
            require_provider(self.ort, self.place.provider)
            return DeviceError(
                f"ONNX Runtime {self.ort.__version__} would run a part of {path} on the CPU, "
                f"because its {self.place.provider} lacks an operator, or could not start; take a "
                "newer onnxruntime-gpu, export the bundle again, or use the device cpu"
            )
        return BundleError(f"ONNX Runtime cannot load {path} on {self.place.name}: {text}")

    def new_state(self) -> DeviceState:
        state = DeviceState(self.ort, self.place, self.bundle.manifest, self.zeros)
        self.adopt(state)
        return state

    @cached_property
    def zeros(self) -> Any:
        """Zeros on the device, enough for any state or part of a history; shared by all streams."""
        manifest = self.bundle.manifest
        specs = (*manifest.states, *manifest.history)
        size = max(np.dtype(s.dtype).itemsize * int(np.prod(shape_of(s))) for s in specs)
        return self.ort.OrtValue.ortvalue_from_numpy(
            np.zeros(size, np.uint8), self.place.tensors, self.place.index
        )

    def device_bytes(self) -> int:
        """What this process has taken of the device, with all its models; see ``DeviceMemory``."""
        return self.memory.taken() if self.memory is not None else 0


def running(session: Any) -> set[str]:
    """The providers that have a part in a session; before 1.24, the first one it was left with."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {session.get_providers()[0]}
    return {part.ep_name for part in session.get_provider_graph_assignment_info()}


def shape_of(spec: TensorSpec) -> tuple[int, ...]:
    """A spec's shape; a batch of any size is of one here."""
    batch, *rest = spec.shape
    return (abs(batch), *rest)
