"""TensorRT's backend: it answers as ONNX Runtime's does, from a thread of its own.

The GPU and TensorRT are doubles that run the bundle's graphs with ONNX Runtime, on device memory
that is NumPy's, so that answers must agree to the last bit. ``tests/gpu`` has the same on a GPU.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from doubles import TensorRT
from playing import FRAMES, POLICIES, assert_equal, picture, play, session, wanted

from edge_mdeq.bundle import Bundle
from edge_mdeq.errors import SessionError
from mdeq_runtime import FixedIterations, UntilTolerance
from mdeq_runtime.backends import ReportsDeviceMemory
from mdeq_runtime.policies import Policy

Open = Callable[..., Any]
TWO = FixedIterations(2)
PROFILE = "tensorrt-10"
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


# The same answers


@policies
@pytest.mark.parametrize("which", ["plain", "anderson"])
def test_it_answers_as_onnx_runtime_does(
    which: str, policy: Policy, open_backend: Open, ten: TensorRT, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(which)
    found = play(open_backend(bundle, ten), bundle, PROFILE, policy)
    assert [result.warm for result in found] == [False, True, True, False, True, True, True, True]
    assert_equal(found, wanted(bundle, policy))


def test_so_does_every_version(double: TensorRT, plain: Bundle, open_backend: Open) -> None:
    if double.rtx:  # the wheel beside which these tests run may be that for CUDA 13
        fake_cuda_driver_of(13000)
    backend = open_backend(plain, double)
    profile = backend.flavour.profile
    for policy in (TWO, POLICIES["tolerance"]):
        assert_equal(play(backend, plain, profile, policy), wanted(plain, policy))
    assert double.count("IExecutionContext.execute_async_v3") > 0


def fake_cuda_driver_of(version: int) -> None:
    from mdeq_runtime.backends import nvidia

    nvidia._driver().version = version


def test_streams_have_a_state_each(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    backend = open_backend(plain, ten)
    alone = {seed: [r.residual for r in play_still(backend, plain, seed)] for seed in range(3)}
    streams = {seed: session(backend, plain, PROFILE, TWO) for seed in range(3)}
    with ThreadPoolExecutor(3) as pool:
        results = {
            seed: pool.submit(lambda s=seed: [streams[s](picture(s)).residual for _ in range(4)])
            for seed in streams
        }
        together = {seed: future.result() for seed, future in results.items()}
    assert together == alone
    assert len(set(map(tuple, alone.values()))) == 3


def play_still(backend: Any, bundle: Bundle, seed: int) -> list[Any]:
    with session(backend, bundle, PROFILE, TWO) as stream:
        return [stream(picture(seed)) for _ in range(4)]


def test_an_answer_outlives_the_model(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    backend = open_backend(plain, ten)
    state = backend.new_state()
    answer = backend.run(plain.profile(PROFILE).rungs[0], FRAMES[0], state)
    kept = answer.output.copy()
    backend.close()
    assert np.array_equal(answer.output, kept)


def test_each_graph_takes_its_turn(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    """By which a new bundle is tried out between the frames of the present one."""
    backend, ran = open_backend(plain, ten), []

    class Turn:
        def __enter__(self) -> None:
            self.before = ten.count("IExecutionContext.execute_async_v3")

        def __exit__(self, *exc: object) -> None:
            ran.append(ten.count("IExecutionContext.execute_async_v3") - self.before)

    backend.turn = Turn()
    with session(backend, plain, PROFILE, POLICIES["tolerance"]) as stream:
        result = stream(FRAMES[0])
    assert ran == [1] * (result.iterations + 2), "injection, evaluations, readout"


# What crosses, and what is allocated


@policies
def test_per_frame_the_image_goes_up_and_the_answer_comes_down(
    anderson: Bundle, ten: TensorRT, open_backend: Open, gpu: fake_cuda.Gpu, policy: Policy
) -> None:
    backend = open_backend(anderson, ten)
    step = min(rung.evaluations for rung in anderson.profile(PROFILE).parts[0].advance)
    with session(backend, anderson, PROFILE, policy) as stream:
        for frame in FRAMES[:3]:
            stream(frame)
        blocks = set(gpu.blocks)
        for frame in FRAMES:
            gpu.copied.clear()
            result = stream(frame)
            steps = 0 if policy is POLICIES["fixed"] else result.iterations // step
            sizes = Counter(gpu.copied)
            assert sizes.pop(("up", FRAMES[0].nbytes)) == 1
            assert sizes.pop(("down", 4)) == 1 + steps, "a residual of each step and of the answer"
            assert sum(sizes.values()) == 2, "output and confidence"
        stream.reset()
        gpu.copied.clear()
        stream(FRAMES[0])
        assert sum(way == "up" for way, _ in gpu.copied) == 1, "nor does a cold start copy zeros"
        assert set(gpu.blocks) == blocks, "all memory was there"


# One thread


def test_all_of_it_happens_in_one_thread(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    backend = open_backend(plain, ten)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: play_still(backend, plain, seed), range(2)))
    threads = {call.thread for call in ten.calls if not call.name.startswith("Logger")}
    assert threads == {backend.device.worker.thread.ident}
    assert threading.get_ident() not in threads
    assert ten.count("Runtime.deserialize_cuda_engine") == 1, "two streams, one engine"
    backend.close()
    assert not backend.device.worker.thread.is_alive()


def test_the_context_is_current_only_while_something_is_done(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten)

    def depth() -> int:
        return len(fake_cuda.stack())

    assert backend.device.worker.call(depth) == 0
    assert backend.device.call(depth) == 1
    ten.fail["IExecutionContext.execute_async_v3"] = RuntimeError("broken")
    with pytest.raises(SessionError, match="broken"):
        play(backend, plain, PROFILE, TWO)
    assert backend.device.worker.call(depth) == 0


# The end


def test_using_a_closed_model_is_an_error(plain: Bundle, ten: TensorRT, open_backend: Open) -> None:
    backend = open_backend(plain, ten)
    state = backend.new_state()
    rung = plain.profile(PROFILE).rungs[0]
    backend.close()
    backend.close()
    for use in (
        lambda: backend.run(rung, FRAMES[0], state),
        lambda: backend.load(rung.graph),
        backend.new_state,
    ):
        with pytest.raises(SessionError, match="closed"):
            use()
    backend.unload(rung.graph)


def test_a_state_of_another_model_is_refused(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    one, other = open_backend(plain, ten), open_backend(plain, ten)
    with pytest.raises(SessionError, match="no state of this model"):
        one.run(plain.profile(PROFILE).rungs[0], FRAMES[0], other.new_state())


def test_what_is_forgotten_is_given_back(
    plain: Bundle, ten: TensorRT, engines: Any, gpu: fake_cuda.Gpu
) -> None:
    from mdeq_runtime.tensorrt.backend import TensorRTBackend
    from mdeq_runtime.tensorrt.versions import flavour_of

    backend = TensorRTBackend(plain, flavour_of(ten.module), engines(plain, ten))
    before = backend.device_bytes()
    state = backend.new_state()
    assert backend.device_bytes() > before
    del state
    gc.collect()
    backend.device.call(lambda: None)  # what was handed in before is done
    assert backend.device_bytes() == before
    play(backend, plain, PROFILE, TWO)
    del backend
    gc.collect()
    assert not gpu.blocks
    assert not gpu.pinned
    assert gpu.retained == 0


UNCLOSED = """
import atexit, sys

def look():  # registered first, so it runs last
    import fake_cuda
    gpu = fake_cuda.gpu
    print("left:", len(gpu.blocks), len(gpu.pinned), len(gpu.graphs), gpu.retained)

atexit.register(look)
sys.path[:0] = sys.argv[1:3]
import fake_cuda
from doubles import TensorRT
from pathlib import Path
from playing import FRAMES, session
from tensorrt_models import engine_bytes
from edge_mdeq.bundle import open_bundle
from mdeq_runtime import FixedIterations
from mdeq_runtime.backends import nvidia
from mdeq_runtime.tensorrt.backend import TensorRTBackend
from mdeq_runtime.tensorrt.versions import flavour_of

driver = fake_cuda.Libcuda()
nvidia._driver = lambda: driver
sys.modules["pycuda.driver"] = fake_cuda
bundle, engine = open_bundle(Path(sys.argv[3])), Path(sys.argv[4])
ten = TensorRT("10.3.0")

def engine_of(graph):
    engine.write_bytes(engine_bytes(ten.version, bundle.path / graph))
    return engine

backend = TensorRTBackend(bundle, flavour_of(ten.module), engine_of)
stream = session(backend, bundle, "tensorrt-10", FixedIterations(2))
for frame in FRAMES:
    stream(frame)
print("at work:", len(fake_cuda.gpu.blocks) > 0, len(fake_cuda.gpu.graphs) > 0)
raise SystemExit(3)
"""


def test_a_program_that_ends_without_closing_leaves_nothing(plain: Bundle, tmp_path: Path) -> None:
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", UNCLOSED, here, here.parent, plain.path, tmp_path / "engine"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 3, run.stderr
    assert run.stdout.split("\n")[:2] == ["at work: True True", "left: 0 0 0 0"], run.stderr


# Memory


def test_what_it_reports_is_what_it_has_taken(
    plain: Bundle, ten: TensorRT, open_backend: Open, engines: Any, gpu: fake_cuda.Gpu
) -> None:
    engine_of = engines(plain, ten, memory=10_000)
    backend = open_backend(plain, ten, engine_of=engine_of)
    assert isinstance(backend, ReportsDeviceMemory)
    rungs = plain.profile(PROFILE).rungs
    for rung in rungs:
        backend.load(rung.graph)
    with session(backend, plain, PROFILE, TWO) as stream:
        stream(FRAMES[0])
        weights = sum(engine_of(rung.graph).stat().st_size for rung in rungs)
        allocated = sum(block.size for block in gpu.blocks.values())
        assert backend.device_bytes() == allocated + weights
    for rung in rungs:
        backend.unload(rung.graph)
    backend.close()
    assert backend.device_bytes() == 0


def test_tolerances_do_not_load_more_than_one_step(
    plain: Bundle, ten: TensorRT, open_backend: Open
) -> None:
    backend = open_backend(plain, ten)
    play(backend, plain, PROFILE, UntilTolerance(1e-9, max_iterations=3))
    parts = plain.profile(PROFILE).parts[0]
    loaded = set(backend.engines.loaded)
    assert loaded == {parts.inject, parts.readout, parts.advance[0].graph}
