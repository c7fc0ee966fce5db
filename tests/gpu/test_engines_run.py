"""TensorRT's engines on a GPU: the answers of ONNX Runtime, in the memory that is accounted for.

``tests/trt`` has the same properties, and all that can go wrong, on doubles.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playing import FRAMES, POLICIES, assert_equal, picture, play, session, wanted

from edge_mdeq.bundle import Bundle
from edge_mdeq.errors import EngineError, MemoryLimitError
from mdeq_runtime import FixedIterations
from mdeq_runtime.backends import nvidia
from mdeq_runtime.policies import Policy

pytestmark = pytest.mark.gpu

TWO = FixedIterations(2)
MIB = 2**20
Open = Callable[..., Any]
Measure = Callable[..., None]
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@policies
@pytest.mark.parametrize("which", ["plain", "anderson"])
def test_engines_answer_as_onnx_runtime_does(
    which: str, policy: Policy, open_backend: Open, measure: Measure, request: Any
) -> None:
    """Cold, warm, after a reset, with a history; convolutions may round as TF32."""
    bundle = request.getfixturevalue(which)
    backend = open_backend(bundle)
    found = play(backend, bundle, backend.profile_name, policy)
    expected = wanted(bundle, policy)
    pairs = list(zip(found, expected, strict=True))
    agreement = [float((a.output == b.output).mean()) for a, b in pairs]
    residuals = [abs(a.residual / b.residual - 1) for a, b in pairs]
    confidence = [float(np.abs(a.confidence - b.confidence).mean()) for a, b in pairs]  # type: ignore[operator]
    measure(agreement=agreement, residuals=residuals, confidence=confidence)
    assert [(a.warm, a.iterations) for a, _ in pairs] == [(b.warm, b.iterations) for _, b in pairs]
    assert min(agreement) >= 0.99
    assert max(confidence) <= 0.01
    assert max(residuals) <= 0.05


@pytest.mark.parametrize("which", ["plain", "anderson"])
@pytest.mark.parametrize("name", ["fixed", "tolerance"])
def test_captured_or_not_the_answers_are_the_same(
    which: str, name: str, open_backend: Open, measure: Measure, request: Any
) -> None:
    bundle, policy = request.getfixturevalue(which), POLICIES[name]
    captured, direct = open_backend(bundle), open_backend(bundle, graphs=False)
    profile = captured.profile_name
    assert_equal(play(captured, bundle, profile, policy), play(direct, bundle, profile, policy))
    measure(captured=captured.engines.capturing)
    assert captured.engines.capturing or captured.flavour.rtx, "no capture failed"


def test_how_long_a_frame_takes(plain: Bundle, open_backend: Open, measure: Measure) -> None:
    """For the report; a captured frame is not to be slower than one that is not."""
    medians = {}
    for graphs in (True, False):
        backend = open_backend(plain, graphs=graphs)
        rung = next(r for r in backend.profile.rungs if r.evaluations == 2)
        state, size = backend.new_state(), plain.manifest.input.size
        image, times = picture(0, (size[0], size[1])), []
        for _ in range(120):
            started = time.perf_counter()
            backend.run(rung, image, state)
            times.append(1e3 * (time.perf_counter() - started))
        medians[graphs] = float(np.median(times[20:]))
        name = "captured" if graphs else "direct"
        measure(**{f"{name}_ms": [float(v) for v in np.percentile(times[20:], (10, 50, 90))]})
    assert medians[True] < 1.5 * medians[False]


def test_streams_in_threads_have_a_state_each(plain: Bundle, open_backend: Open) -> None:
    backend = open_backend(plain)

    def alone(seed: int) -> list[float]:
        with session(backend, plain, backend.profile_name, TWO) as stream:
            return [stream(picture(seed)).residual for _ in range(20)]

    expected = [alone(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(alone, range(4))) == expected


def current_context() -> int:
    context = ctypes.c_void_p()
    nvidia._call(nvidia._driver(), "cuCtxGetCurrent", ctypes.byref(context))
    return context.value or 0


def test_no_context_is_left_current(plain: Bundle, open_backend: Open) -> None:
    """Neither in a thread that asks for answers, nor in the one that gives them."""
    backend = open_backend(plain)
    seen: list[int] = []

    def ask() -> None:
        with session(backend, plain, backend.profile_name, TWO) as stream:
            stream(FRAMES[0])
        seen.append(current_context())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    seen.append(backend.device.worker.call(current_context))
    assert seen == [0, 0]
    assert backend.device.call(current_context) != 0


@cache
def memory() -> nvidia.DeviceMemory:
    return nvidia.DeviceMemory()


def used() -> int:
    """Bytes of the device that anyone uses."""
    return memory().used()


def test_what_is_reported_is_what_the_device_lacks(
    plain: Bundle, open_backend: Open, measure: Measure
) -> None:
    """Many states, so that what else happens on the device does not show."""
    backend = open_backend(plain)
    backend.load(backend.profile.rungs[0].graph)
    kept = [backend.new_state()]  # the first one brings what CUDA sets aside in blocks
    reported, before = backend.device_bytes(), used()
    kept.append(backend.new_state())
    each = backend.device_bytes() - reported
    count = min(2000, -(-256 * MIB // each))
    kept += [backend.new_state() for _ in range(count - 1)]
    grown, lacking = backend.device_bytes() - reported, used() - before
    measure(state_bytes=each, reported=grown, lacking=lacking, engine_and_state=reported)
    assert grown == count * each
    assert lacking == pytest.approx(grown, rel=0.25, abs=32 * MIB)
    kept.clear()
    backend.device.call(lambda: None)
    assert backend.device_bytes() < reported
    assert used() - before < 32 * MIB


def test_an_engine_takes_about_what_it_counts_for(
    plain: Bundle, open_backend: Open, measure: Measure
) -> None:
    backend = open_backend(plain)
    numbers = {}
    for rung in backend.profile.rungs[:2]:
        reported, before = backend.device_bytes(), used()
        backend.load(rung.graph)
        numbers[rung.graph] = backend.device_bytes() - reported, used() - before
    measure(counted_and_lacking=numbers)
    assert all(counted > 0 for counted, _ in numbers.values())
    assert max(lacking - counted for counted, lacking in numbers.values()) < 128 * MIB


def test_closing_gives_everything_back(plain: Bundle, open_backend: Open, measure: Measure) -> None:
    play(open_backend(plain), plain, open_backend(plain).profile_name, TWO)  # what stays for good
    before, seen = used(), []
    for _ in range(5):
        backend = open_backend(plain)
        play(backend, plain, backend.profile_name, TWO)
        backend.close()
        seen.append(used() - before)
    measure(after_closing=seen)
    assert seen[-1] - seen[0] < 16 * MIB


def test_a_limit_holds(plain: Bundle, open_backend: Open) -> None:
    backend = open_backend(plain, limit=64 * MIB)
    states: list[Any] = []
    with pytest.raises(MemoryLimitError, match=str(64 * MIB)):
        states.extend(backend.new_state() for _ in range(10_000))
    assert backend.device_bytes() <= 64 * MIB
    states.clear()
    with session(backend, plain, backend.profile_name, TWO) as stream:
        assert np.isfinite(stream(FRAMES[0]).residual)


def test_a_truncated_engine_is_an_error_and_the_whole_one_runs(
    plain: Bundle, open_backend: Open, engine_of: Any, tmp_path: Path
) -> None:
    whole, short = engine_of(plain), tmp_path / "short.engine"
    spoilt = True

    def find(graph: str) -> Path:
        path: Path = whole(graph)
        short.write_bytes(path.read_bytes()[:-1000])
        return short if spoilt else path

    backend = open_backend(plain, engine_of=find)
    graph = backend.profile.rungs[0].graph
    with pytest.raises(EngineError, match=r"short\.engine"):
        backend.load(graph)
    spoilt = False
    backend.load(graph)
