"""Engines on the device: the memory that they share, the limit that they keep, CUDA graphs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
from doubles import TensorRT
from playing import FRAMES, assert_equal, play, session, wanted
from tensorrt_models import engine_bytes

from edge_mdeq.bundle import Bundle
from edge_mdeq.errors import (
    MemoryLimitError,
)
from mdeq_runtime import FixedIterations
from mdeq_runtime.backends import nvidia

Open = Callable[..., Any]
TWO = FixedIterations(2)
PROFILE = "tensorrt-10"
RUN = "IExecutionContext.execute_async_v3"
LOAD = "Runtime.deserialize_cuda_engine"


def rungs(bundle: Bundle) -> list[str]:
    return [rung.graph for rung in bundle.profile(PROFILE).rungs]


@pytest.fixture(autouse=True)
def new_driver(gpu: fake_cuda.Gpu) -> None:
    """One that is new enough for every TensorRT."""
    nvidia._driver().version = 13000  # type: ignore[attr-defined]


# The memory that engines work in


def test_engines_work_in_one_memory(
    double: TensorRT, plain: Bundle, open_backend: Open, gpu: fake_cuda.Gpu, tmp_path: Path
) -> None:
    """As large as the neediest asks for, and smaller again when that one goes."""
    first, second, third = rungs(plain)
    needs = {first: 5000, second: 9000, third: 7000}

    def engine_of(graph: str) -> Path:
        path = tmp_path / "engine"
        path.write_bytes(engine_bytes(double.version, plain.path / graph, needs[graph]))
        return path

    def sizes() -> list[int]:
        return [b.size for b in gpu.blocks.values() if b.size in needs.values()]

    backend = open_backend(plain, double, engine_of=engine_of)
    for graph, size in ((first, 5000), (second, 9000), (third, 9000)):
        backend.load(graph)
        assert sizes() == [size]
    assert double.count(LOAD) == 3
    backend.unload(second)
    assert sizes() == [7000]
    profile = backend.flavour.profile
    assert_equal(
        play(backend, plain, profile, FixedIterations(1)), wanted(plain, FixedIterations(1))
    )


def test_contexts_have_none_of_their_own(
    double: TensorRT, plain: Bundle, open_backend: Open
) -> None:
    backend = open_backend(plain, double)
    backend.load(rungs(plain)[0])
    if double.version.startswith("8"):
        assert double.count("ICudaEngine.create_execution_context_without_device_memory") == 1
    else:
        (call,) = double.named("ICudaEngine.create_execution_context")
        assert call.arguments["strategy"].name == "USER_MANAGED"


# The limit


def test_what_does_not_fit_is_not_even_read(
    plain: Bundle, ten: TensorRT, open_backend: Open, engines: Any
) -> None:
    engine_of = engines(plain, ten, weights=100_000)
    backend = open_backend(plain, ten, engine_of=engine_of, limit=300_000)
    one, two, _ = rungs(plain)
    backend.load(one)
    taken, size = backend.device_bytes(), engine_of(two).stat().st_size
    backend.engines.device.limit = limit = taken + size - 1
    with pytest.raises(MemoryLimitError, match=two) as refused:
        backend.load(two)
    assert all(str(number) in str(refused.value) for number in (size, limit, taken))
    assert ten.count(LOAD) == 1
    assert backend.device_bytes() == taken
    backend.unload(one)
    backend.load(two)


def test_working_memory_that_does_not_fit_leaves_what_was_loaded(
    plain: Bundle, ten: TensorRT, open_backend: Open, tmp_path: Path
) -> None:
    small, large, _ = rungs(plain)

    def engine_of(graph: str) -> Path:
        path = tmp_path / "engine"
        memory = 4096 if graph == small else 500_000
        path.write_bytes(engine_bytes(ten.version, plain.path / graph, memory))
        return path

    backend = open_backend(plain, ten, engine_of=engine_of, limit=400_000)
    backend.load(small)
    taken = backend.device_bytes()
    with pytest.raises(MemoryLimitError, match="500000"):
        backend.load(large)
    assert backend.device_bytes() == taken
    assert len(play(backend, plain, PROFILE, FixedIterations(1))) == len(FRAMES)


def test_a_stream_too_many_is_refused_and_the_others_go_on(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten)
    with session(backend, plain, PROFILE, TWO) as stream:
        stream(FRAMES[0])
        taken = backend.device_bytes()
        backend.device.limit = taken + 1000
        with pytest.raises(MemoryLimitError, match="a stream's state"):
            backend.new_state()
        assert backend.device_bytes() == taken
        assert stream(FRAMES[0]).warm


def test_a_device_that_is_full_is_said_in_numbers(
    plain: Bundle, ten: TensorRT, open_backend: Open, gpu: fake_cuda.Gpu
) -> None:
    backend = open_backend(plain, ten)
    gpu.free, before = 100, gpu.free
    with pytest.raises(MemoryLimitError, match="100 of 1073741824 are free"):
        backend.new_state()
    gpu.free = before
    backend.new_state()


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106", "rtx_1.7.1.116"])
def test_weights_that_may_stay_with_the_host_do_so_as_far_as_needed(
    version: str, plain: Bundle, open_backend: Open, engines: Any
) -> None:
    double = TensorRT(version)
    engine_of = engines(plain, double, weights=200_000, streamable=150_000)
    graph = rungs(plain)[0]
    size = engine_of(graph).stat().st_size
    roomy = open_backend(plain, double, engine_of=engine_of, limit=10**6, streaming=True)
    roomy.load(graph)
    assert double.count("ICudaEngine.weight_streaming_budget_v2=") == 0
    base = roomy.device_bytes() - size
    tight = open_backend(plain, double, engine_of=engine_of, limit=base + 100_000, streaming=True)
    tight.load(graph)
    assert base + 90_000 < tight.device_bytes() <= base + 100_000
    narrow = open_backend(plain, double, engine_of=engine_of, limit=base + 40_000, streaming=True)
    with pytest.raises(MemoryLimitError, match=graph):
        narrow.load(graph)


# CUDA graphs


@pytest.mark.parametrize("graphs", [True, False])
def test_captured_or_not_the_answers_are_the_same(
    graphs: bool, anderson: Bundle, ten: TensorRT, open_backend: Open, gpu: fake_cuda.Gpu
) -> None:
    backend = open_backend(anderson, ten, graphs=graphs)
    assert_equal(play(backend, anderson, PROFILE, TWO), wanted(anderson, TWO))
    assert bool(gpu.counts.get("cuGraphLaunch")) == graphs


def test_each_rung_and_turn_is_captured_once(
    plain: Bundle, ten: TensorRT, open_backend: Open, gpu: fake_cuda.Gpu
) -> None:
    backend = open_backend(plain, ten)
    with session(backend, plain, PROFILE, TWO) as stream:
        for _ in range(12):
            stream(FRAMES[0])
    assert gpu.counts["cuStreamBeginCapture_v2"] == 2, "the two turns of a warm start"
    runs = ten.count(RUN)
    assert runs == 3 + 2, "one cold and two warm ones directly, and those that were captured"


def test_what_was_captured_goes_with_what_it_uses(
    plain: Bundle, ten: TensorRT, open_backend: Open, tmp_path: Path, gpu: fake_cuda.Gpu
) -> None:
    """Neither after its engine was loaded anew nor in memory that moved is it launched again."""
    small, graph, large = rungs(plain)

    def engine_of(graph: str) -> Path:
        path = tmp_path / "engine"
        path.write_bytes(engine_bytes(ten.version, plain.path / graph, 4096 + (graph == large)))
        return path

    backend = open_backend(plain, ten, engine_of=engine_of)
    backend.load(small)  # so that the memory stays when the other engine goes
    changes = [
        lambda: backend.load(large),  # moves the memory that all work in
        lambda: backend.unload(large),
        lambda: (backend.unload(graph), gc.collect()),
    ]
    with session(backend, plain, PROFILE, TWO) as stream:
        for change in changes:
            for _ in range(7):
                stream(FRAMES[0])
            assert gpu.graphs, "two turns are captured"
            change()
        stream.reset()
        again = [stream(FRAMES[0]).residual for _ in range(7)]
    with session(backend, plain, PROFILE, TWO) as stream:
        assert again == [stream(FRAMES[0]).residual for _ in range(7)]


@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_without_capture_frames_are_queued_and_it_is_said_once(
    function: str,
    plain: Bundle,
    ten: TensorRT,
    open_backend: Open,
    gpu: fake_cuda.Gpu,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu.refuse[function] = 900
    backend = open_backend(plain, ten)
    with caplog.at_level(logging.WARNING):
        assert_equal(play(backend, plain, PROFILE, TWO), wanted(plain, TWO))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "CUDA graphs are not used" in message
    assert function in message


def test_rtx_says_itself_whether_it_can_be_captured(
    plain: Bundle, open_backend: Open, gpu: fake_cuda.Gpu
) -> None:
    double = TensorRT("rtx_1.7.1.116")
    double.fail["IExecutionContext.is_stream_capturable"] = "compiles yet"
    backend = open_backend(plain, double)
    play(backend, plain, "tensorrt-rtx", TWO)
    assert "cuStreamBeginCapture_v2" not in gpu.counts
