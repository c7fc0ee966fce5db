"""An engine of a parsed graph: what the compiler is told, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_mdeq.errors import ConfigError, EngineError
from mdeq_runtime.tensorrt.listening import Progress, monitor
from mdeq_runtime.tensorrt.network import Network
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["Plan", "build", "layers_of"]

HALF_LAYERS = ("CONVOLUTION", "RESIZE")  # of ``LayerType``; the same that --half covers elsewhere


@dataclass(frozen=True)
class Plan:
    """A serialised engine, and the timings that a next build can use again; None on RTX."""

    engine: Any  # supports the buffer protocol
    timings: bytes | None

    @property
    def bytes(self) -> int:
        return memoryview(self.engine).nbytes


def build(
    parsed: Network,
    settings: BuildSettings,
    timings: bytes = b"",
    report: Callable[[Progress], bool] | None = None,
) -> Plan:
    """Compile a network.

    Args:
        parsed: the network.
        settings: what to tell the compiler.
        timings: of an earlier build on the same device, by the same version.
        report: hears of the progress; False from it ends the build.

    Raises:
        ConfigError: settings that this version does not have.
        EngineError: the compiler gives up; why stands in its log.
    """
    flavour = parsed.flavour
    config = parsed.builder.create_builder_config()
    configure(config, parsed, settings)
    cache = None if flavour.rtx else timing_cache(config, timings)  # there it is a no-op
    listener = monitor(flavour, report) if report is not None and flavour.has_monitor else None
    if listener is not None:
        config.progress_monitor = listener
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    if engine is None:
        raise EngineError(
            f"{flavour.name} built no engine of {parsed.graph} ({parsed.layers} layers); its "
            "messages above say why. If memory ran out: a smaller --workspace, a smaller rung "
            "(--iterations), or more swap"
        )
    return Plan(engine, None if cache is None else bytes(memoryview(cache.serialize())))


def timing_cache(config: Any, timings: bytes) -> Any:
    """A config's cache: empty where ``timings`` are damaged, or of another device or version."""
    for content in (timings, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def configure(config: Any, parsed: Network, settings: BuildSettings) -> None:
    """Put the settings into a builder's config, or say which of them this version lacks."""
    flavour, trt = parsed.flavour, parsed.flavour.module
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if settings.level is not None:
        config.builder_optimization_level = settings.level
    if settings.compatibility is not None:
        config.hardware_compatibility_level = flavour.compatibility(settings.compatibility)
    if settings.version_compatible:
        if flavour.rtx:
            raise ConfigError(f"{flavour.name} builds no version-compatible engines")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.stream_weights:
        if not flavour.streams_weights:
            raise ConfigError(f"{flavour.name} cannot stream weights; TensorRT 10 and later can")
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if settings.half:
        allow_half(config, parsed)
    if flavour.rtx:
        chosen = [flavour.capability(name) for name in settings.capabilities]
        chosen = chosen or [trt.ComputeCapability.CURRENT]
        config.num_compute_capabilities = len(chosen)
        for k, capability in enumerate(chosen):
            config.set_compute_capability(capability, k)
    elif settings.capabilities:
        flavour.capability(settings.capabilities[0])  # says why not
    add_batch_profile(config, parsed, settings.batch)


def allow_half(config: Any, parsed: Network) -> None:
    """FP16 where the model computes; norms, states and solver stay in FP32, as in graphs of FP16.

    Raises:
        ConfigError: precision lies in the graph for this version.
    """
    flavour, trt = parsed.flavour, parsed.flavour.module
    if not flavour.weakly_typed:
        raise ConfigError(
            f"for {flavour.name} precision lies in the graph: export the bundle with --half"
        )
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    half = {getattr(trt.LayerType, name) for name in HALF_LAYERS}
    for k in range(parsed.network.num_layers):
        layer = parsed.network.get_layer(k)
        outputs = [layer.get_output(n) for n in range(layer.num_outputs)]
        if layer.type not in half and all(out.dtype == trt.DataType.FLOAT for out in outputs):
            layer.precision = trt.DataType.FLOAT
            for n in range(layer.num_outputs):
                layer.set_output_type(n, trt.DataType.FLOAT)


def add_batch_profile(config: Any, parsed: Network, batch: tuple[int, int, int]) -> None:
    """The range of batches, for a graph that leaves the number of images open."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in parsed.inputs()}
    if not any(-1 in shape for shape in shapes.values()):
        if batch != (1, 1, 1):
            raise ConfigError(
                f"{parsed.graph} has a fixed batch; export with --dynamic-batch for {batch}"
            )
        return
    profile = parsed.builder.create_optimization_profile()
    for name, shape in shapes.items():
        sizes = [tuple(n if side == -1 else side for side in shape) for n in batch]
        profile.set_shape(name, *sizes)
    config.add_optimization_profile(profile)


def layers_of(flavour: Flavour, engine: Any) -> str:
    """What the inspector says of a deserialised engine, as JSON text."""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(flavour.module.LayerInformationFormat.JSON))
