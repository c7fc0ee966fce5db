"""ONNX Runtime on the CPU, with all buffers allocated once and the state carried in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, Manifest, TensorSpec
from edge_mdeq.errors import BundleError, MemoryLimitError, require
from mdeq_runtime.backends import Answer, Footprint
from mdeq_runtime.backends.graph_cache import GraphCache
from mdeq_runtime.backends.ort import OrtBackend, Values, over_share
from mdeq_runtime.backends.ort_memory import predict
from mdeq_runtime.memory import limit_heaps, resident_bytes, returning_blocks

__all__ = ["OrtCpuBackend", "OrtState"]

PROFILE = "ort-cpu"


class OrtState:
    """A stream's buffers: two sets of state that take turns as input and output, and the rest.

    ONNX Runtime reads and writes the NumPy arrays themselves; nothing is copied per frame. What
    only a solve in parts needs is allocated at the first one.
    """

    def __init__(self, ort: Any, manifest: Manifest) -> None:
        self.manifest = manifest
        self.owner: object = None  # the backend whose graphs it is bound to
        self.wrap = ort.OrtValue.ortvalue_from_numpy
        self.image = allocate(manifest.input.tensor)
        self.output = allocate(manifest.output.tensor)
        self.confidence = allocate(manifest.confidence) if manifest.confidence else None
        self.residual = allocate(manifest.residual)
        self.states = [[allocate(spec) for spec in manifest.states] for _ in range(2)]
        self.history: list[list[NDArray[Any]]] = [[], []]
        self.turn = 0  # which of the two sets is the input of the next run
        self.bindings: dict[tuple[str, int], Any] = {}
        self.image_in = {manifest.input.tensor.name: self.wrap(self.image)}
        self.residual_out = {manifest.residual.name: self.wrap(self.residual)}
        self.answer_out = {manifest.output.tensor.name: self.wrap(self.output)}
        if manifest.confidence is not None:
            self.answer_out[manifest.confidence.name] = self.wrap(self.confidence)
        self.state_values = [[self.wrap(array) for array in arrays] for arrays in self.states]

    def reset(self) -> None:
        """Back to z = 0, with an empty history."""
        for array in self.states[self.turn]:
            array.fill(0)
        self.restart()

    def restart(self) -> None:
        """Empty the solver's history."""
        for array in self.history[self.turn]:
            array.fill(0)

    @cached_property
    def injection(self) -> dict[str, Any]:
        return {self.manifest.injection.name: self.wrap(allocate(self.manifest.injection))}

    @cached_property
    def history_values(self) -> list[list[Any]]:
        self.history = [[allocate(spec) for spec in self.manifest.history] for _ in range(2)]
        return [[self.wrap(array) for array in arrays] for arrays in self.history]

    @cached_property
    def evaluated(self) -> list[Any]:
        """What ``advance`` evaluated last, where that is not what the solve goes on from."""
        if self.manifest.values == self.manifest.state_outputs:
            return []
        return [self.wrap(allocate(spec)) for spec in self.manifest.states]

    def phase(self) -> int:
        return self.turn

    def put(self, image: NDArray[np.uint8]) -> None:
        self.image[0] = image

    def solve_values(self) -> tuple[Values, Values]:
        outputs = self.answer_out | self.residual_out | self.state_out()
        return self.image_in | self.state_in(), outputs

    def inject_values(self) -> tuple[Values, Values]:
        return self.image_in, self.injection

    def advance_values(self) -> tuple[Values, Values]:
        evaluated = dict(zip(self.manifest.values, self.evaluated, strict=False))
        names = [spec.name for spec in self.manifest.history]
        history = dict(zip(names, self.history_values[self.turn], strict=True))
        after = self.history_values[1 - self.turn]
        history_out = dict(zip(self.manifest.history_outputs, after, strict=True))
        inputs = self.injection | self.state_in() | history
        return inputs, evaluated | self.state_out() | history_out | self.residual_out

    def readout_values(self) -> tuple[Values, Values]:
        names = [spec.name for spec in self.manifest.states]
        evaluated = dict(zip(names, self.evaluated, strict=False))
        return evaluated or self.state_in(), self.answer_out

    def state_in(self) -> Values:
        names = [spec.name for spec in self.manifest.states]
        return dict(zip(names, self.state_values[self.turn], strict=True))

    def state_out(self) -> Values:
        return dict(zip(self.manifest.state_outputs, self.state_values[1 - self.turn], strict=True))

    def solved(self) -> None:
        self.turn = 1 - self.turn

    advanced = solved

    def residual_value(self) -> float:
        return float(self.residual[0])

    def answer(self) -> Answer:
        confidence = None if self.confidence is None else self.confidence[0]
        return Answer(self.output[0], confidence, self.residual_value())


class OrtCpuBackend(OrtBackend):
    """Loads rungs of the ``ort-cpu`` profile on demand.

    Args:
        bundle: the opened bundle; each file's hash is checked before it is used.
        threads: threads per graph, 0 for one per core.
        cache: a folder for graphs as this machine runs them, which take less memory; see
            ``graph_cache``. The first run writes them there, as large as the weights.
        limit: bytes that the process may take; None: as many as there are. Weights and values get
            what is left of it when the first graph of a process is loaded.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        BundleError: the bundle lacks the profile, takes several images at once, or a file of it is
            missing or altered.
    """

    name = "ONNX Runtime, CPU"

    def __init__(
        self, bundle: Bundle, threads: int = 0, cache: Path | None = None, limit: int | None = None
    ) -> None:
        self.ort = require("onnxruntime", "onnxruntime", "running a bundle on the CPU")
        limit_heaps()
        super().__init__(bundle, PROFILE)
        self.threads, self.limit = threads, limit
        self.cache = None if cache is None else GraphCache(cache, self.ort, self.options)

    def open(self, graph: str) -> Any:
        share_arena(self.ort, self.limit)
        with returning_blocks():
            return self.session(graph)

    def session(self, graph: str) -> Any:
        path = self.bundle.file(graph)
        if self.cache is not None and (session := self.cache.session(path, self.identity(graph))):
            return session
        try:
            return self.ort.InferenceSession(
                str(path), self.options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            if over_share(error):
                raise MemoryLimitError(f"{path} needs more than its share: {error}") from error
            raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error

    @property
    def parts_will_do(self) -> bool:
        """See ``backends.CopiesWeights``."""
        return not self.bundle.manifest.solver.best

    def footprint(self, graphs: Sequence[str]) -> Footprint:
        """What these graphs would take; see ``backends.PredictsMemory``.

        Raises:
            BundleError: the bundle does not say what its graphs cost.
        """
        costs = self.profile.costs
        if not all(graph in costs for graph in graphs):
            raise BundleError(
                f"{self.bundle.path} was written before bundles said what their graphs take; to "
                "run it under a memory limit, export it again"
            )
        cached = self.cache is not None and all(
            self.cache.has(self.identity(graph)) for graph in graphs
        )
        return predict([costs[graph] for graph in graphs], cached)

    def options(self) -> Any:
        """Settings for a small process: buffers from the shared arena, none planned, no denormals.

        Threads do not wait, spinning, for their graph to run again: they take the cores from the
        graph that follows. In parts a solve of camvid-nano took three times as long, one of
        ImageNet-small twice (``benchmarks/spinning.py``). One pool for all graphs is no way out:
        ONNX Runtime then refuses every other session of the process that has threads of its own.

        Measured on camvid-nano: a memory pattern costs another 9 MB and saves no time. Nor does
        "reuse", by which a buffer that no longer holds anything is kept for a later tensor of the
        same size instead of going back to the arena at once: 4 MB more there, and of the readout of
        cityscapes-small at 1024 x 2048, in tiles, it kept two whole ones, 361 MB instead of 128.
        """
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_cpu_mem_arena = True
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        options.log_severity_level = 3
        # A state that shrinks towards zero meets denormals, and those are four times slower.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return options

    def new_state(self) -> OrtState:
        state = OrtState(self.ort, self.bundle.manifest)
        self.adopt(state)
        return state


SHARED: list[int | None] = []  # the limit that the arena of this process was made under


def share_arena(ort: ModuleType, limit: int | None = None) -> None:
    """One arena for the graphs of the whole process, made once and kept.

    Graphs take turns, so what one frees the next can use. On camvid-nano this saves 2 MB and a
    tenth of a solve's time over plain malloc, which gives pages back only to fetch them again; an
    arena per graph would cost 11 MB more for each further rung.

    Args:
        ort: the module ONNX Runtime.
        limit: bytes of the process, of which it gets what is not taken yet; None: no limit. The
            first call decides.

    Raises:
        MemoryLimitError: nothing is left.
    """
    if SHARED:
        return
    kind, memory = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    settings = None
    if limit is not None:
        left = limit - (resident_bytes() or 0)
        if left <= 0:
            raise MemoryLimitError(
                f"the process holds its limit of {limit} bytes before any graph is loaded"
            )
        settings = ort.OrtArenaCfg({"max_mem": left})
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, memory), settings)
    SHARED.append(limit)


def allocate(spec: TensorSpec) -> NDArray[Any]:
    """A zeroed array for ``spec``; a batch of any size is of one here."""
    batch, *rest = spec.shape
    return np.zeros((abs(batch), *rest), dtype=np.dtype(spec.dtype))
