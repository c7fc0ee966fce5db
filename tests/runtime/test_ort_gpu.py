"""ONNX Runtime on a GPU: the same answers, from tensors that stay where the graphs run.

What is said of the CPU runs everywhere: the same class, on real graphs, with ONNX Runtime's own CPU
provider and tensors of its making. What is marked ``gpu`` is the same on CUDA and TensorRT.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from streams import CALM, blobs

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import DeviceError, MissingExtraError, SessionError
from mdeq_runtime import FixedIterations, Result, Session, UntilDeadline, UntilTolerance
from mdeq_runtime.backends.choose import open_backend
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.backends.ort_gpu import OrtGpuBackend, running
from mdeq_runtime.backends.places import CPU, Place, cuda, tensorrt
from mdeq_runtime.policies import Policy

HERE = Place("CPU", ((CPU, {}),), tensors="cpu")
POLICIES = {
    "fixed": FixedIterations(2, cold=4),
    "tolerance": UntilTolerance(1e-9, max_iterations=3),
    "deadline": UntilDeadline(60_000, tol=1e-9, max_iterations=3),
}
FRAMES = [blobs(seed) for seed in (0, 0, 1, 2, 2)]
PROFILES = ["ort-cpu", "ort-cuda", "tensorrt-10"]
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.fixture(scope="module")
def bundle(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The segmenter under a solver with a history, for every runtime that ONNX Runtime hosts."""
    from quick_exports import traced_once, two_images

    from mdeq_export import ExportSettings, export_bundle

    out = tmp_path_factory.mktemp("gpu") / "segmenter.mdeq"
    settings = ExportSettings(
        iterations=(2,),
        solver="anderson",
        solver_settings={"m": 3},
        targets=("ort-cpu", "ort-cuda", "tensorrt-8", "tensorrt-10"),
    )
    with two_images(), traced_once():
        export_bundle(segmenter_weights, out, settings)
    return open_bundle(out)


@pytest.fixture(scope="module")
def plain(segmenter_bundle: Path) -> Bundle:
    """The segmenter under the plain iteration, which has no history, for the CPU."""
    return open_bundle(segmenter_bundle)


def session(backend: Any, bundle: Bundle, profile: str, policy: Policy) -> Session:
    settings = replace(CALM, policy=policy, confidence=True)
    return Session(bundle.manifest, bundle.profile(profile), backend, settings)


def play(backend: Any, bundle: Bundle, profile: str, policy: Policy) -> list[Result]:
    """A cold frame, warm ones, and after a reset a cold one and a warm one again."""
    with session(backend, bundle, profile, policy) as stream:
        results = [stream(frame) for frame in FRAMES[:3]]
        stream.reset()
        return [*results, *(stream(frame) for frame in FRAMES[3:])]


def wanted(bundle: Bundle, policy: Policy) -> list[Result]:
    with closing(OrtCpuBackend(bundle, threads=1)) as backend:
        return play(backend, bundle, "ort-cpu", policy)


def agree(found: list[Result], expected: list[Result], share: float, rel: float) -> None:
    assert [result.warm for result in found] == [False, True, True, False, True]
    for a, b in zip(found, expected, strict=True):
        assert (a.warm, a.reason, a.iterations) == (b.warm, b.reason, b.iterations)
        assert (a.output == b.output).mean() >= share
        assert a.residual == pytest.approx(b.residual, rel=rel)
        assert a.confidence is not None
        assert b.confidence is not None
        assert float(np.abs(a.confidence - b.confidence).mean()) <= max(1e-7, rel)


# The same answers


@policies
@pytest.mark.parametrize("which", ["plain", "bundle"])
def test_it_answers_as_the_cpu_backend_does(
    which: str, policy: Policy, request: pytest.FixtureRequest
) -> None:
    opened: Bundle = request.getfixturevalue(which)
    with closing(OrtGpuBackend(opened, "ort-cpu", HERE)) as backend:
        found = play(backend, opened, "ort-cpu", policy)
    agree(found, wanted(opened, policy), share=1.0, rel=1e-6)


@policies
@pytest.mark.parametrize("profile", PROFILES[1:])
def test_graphs_for_a_gpu_say_the_same(bundle: Bundle, profile: str, policy: Policy) -> None:
    with closing(OrtGpuBackend(bundle, profile, HERE)) as backend:
        found = play(backend, bundle, profile, policy)
    agree(found, wanted(bundle, policy), share=0.999, rel=1e-3)


def test_a_warm_solve_goes_on_where_the_last_one_stopped(plain: Bundle) -> None:
    """Two frames of two evaluations are one of four, if nothing is lost in between."""
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:
        short = session(backend, plain, "ort-cpu", FixedIterations(2))
        twice = [short(FRAMES[0]) for _ in range(2)]
        once = session(backend, plain, "ort-cpu", FixedIterations(4))(FRAMES[0])
    assert twice[1].warm
    assert twice[1].residual == pytest.approx(once.residual, rel=1e-4)


# What crosses to the device, and what is allocated


class Traffic:
    """Counts what goes through ONNX Runtime's Python interface, and lets it through."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.to_device: list[int] = []
        self.from_device: list[int] = []
        self.made: Counter[str] = Counter()
        value, session = ort.OrtValue, ort.InferenceSession
        update, numpy, bind = value.update_inplace, value.numpy, session.io_binding
        make = value.ortvalue_from_shape_and_type.__func__
        copy = value.ortvalue_from_numpy.__func__

        def counted_update(tensor: Any, array: Any) -> None:
            self.to_device.append(array.nbytes)
            update(tensor, array)

        def counted_numpy(tensor: Any) -> Any:
            array = numpy(tensor)
            self.from_device.append(array.nbytes)
            return array

        def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.made[what] += 1
                return function(*args, **options)

            return call

        patch.setattr(value, "update_inplace", counted_update)
        patch.setattr(value, "numpy", counted_numpy)
        patch.setattr(value, "ortvalue_from_shape_and_type", classmethod(counted("tensor", make)))
        patch.setattr(value, "ortvalue_from_numpy", classmethod(counted("copied tensor", copy)))
        patch.setattr(session, "io_binding", counted("binding", bind))


def check_traffic(backend: Any, bundle: Bundle, profile: str, policy: Policy) -> None:
    """Per frame the image goes in and the answer comes out, once all buffers are there."""
    manifest = bundle.manifest
    sizes = {
        spec.name: int(np.prod(np.abs(spec.shape))) * np.dtype(spec.dtype).itemsize
        for spec in (manifest.input.tensor, manifest.output.tensor, *manifest.states)
    }
    image, output = sizes[manifest.input.tensor.name], sizes[manifest.output.tensor.name]
    advance = bundle.profile(profile).parts[0].advance
    assert manifest.confidence is not None
    low = int(np.prod(np.abs(manifest.confidence.shape))) * 4
    with session(backend, bundle, profile, policy) as stream, pytest.MonkeyPatch.context() as patch:
        for count in (1, 2, 3, 4):  # cold and warm, from either set of states
            stream.reset()
            for frame in FRAMES[:count]:
                stream(frame)
        tensors = [id(t) for turn in stream.state.states for t in turn]
        traffic = Traffic(patch)
        for frame in FRAMES:
            result = stream(frame)
            assert traffic.to_device == [image], "the image, and nothing else"
            residuals = 1  # of the answer, and of each step that may be the last one
            if not isinstance(policy, FixedIterations):
                residuals += result.iterations // min(r.evaluations for r in advance)
            assert Counter(traffic.from_device) == Counter([output, low] + [4] * residuals)
            traffic.to_device.clear()
            traffic.from_device.clear()
        stream.reset()
        stream(FRAMES[0])
        assert set(traffic.to_device) == {image}, "nor does a cold start copy zeros"
        assert not traffic.made, "all tensors and bindings were there"
        assert tensors == [id(t) for turn in stream.state.states for t in turn]
        held = [*stream.state.states[0], *stream.state.states[1], stream.state.image]
        held += [backend.zeros, *stream.state.history[0], *stream.state.history[1]]
        assert {tensor.device_name() for tensor in held} == {backend.place.tensors}


@policies
def test_only_the_image_goes_in_and_the_answer_comes_out(bundle: Bundle, policy: Policy) -> None:
    with closing(OrtGpuBackend(bundle, "ort-cuda", HERE)) as backend:
        check_traffic(backend, bundle, "ort-cuda", policy)


def test_the_zeros_of_a_cold_start_stay_zeros(bundle: Bundle) -> None:
    """They are an input of many graphs and streams, and the output of none."""
    with closing(OrtGpuBackend(bundle, "ort-cpu", HERE)) as backend:
        for policy in POLICIES.values():
            play(backend, bundle, "ort-cpu", policy)
        zeros = backend.zeros.numpy()
    assert not zeros.any()
    largest = max(np.prod(spec.shape) for spec in bundle.manifest.states)
    assert zeros.nbytes == 4 * largest


def test_new_tensors_hold_nothing_that_is_read(bundle: Bundle) -> None:
    """A cold start does not depend on what the memory held before."""
    with closing(OrtGpuBackend(bundle, "ort-cpu", HERE)) as backend:
        answers = []
        for spoilt in (False, True):
            stream = session(backend, bundle, "ort-cpu", POLICIES["tolerance"])
            if spoilt:
                state = stream.state
                for tensor in [*state.states[0], *state.states[1], *state.history[0]]:
                    tensor.update_inplace(np.full(tensor.shape(), np.nan, np.float32))
            answers.append(stream(FRAMES[0]))
    assert np.array_equal(answers[0].output, answers[1].output)
    assert answers[0].residual == answers[1].residual


# Streams


def test_two_streams_share_graphs_but_no_state(plain: Bundle) -> None:
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:
        alone = session(backend, plain, "ort-cpu", FixedIterations(2))
        expected = [alone(frame).residual for frame in FRAMES]
        one = session(backend, plain, "ort-cpu", FixedIterations(2))
        other = session(backend, plain, "ort-cpu", FixedIterations(2))
        found = []
        for frame in FRAMES:
            found.append(one(frame).residual)
            other(255 - frame)
    assert found == expected


def test_streams_may_run_in_threads(plain: Bundle) -> None:
    found: dict[int, list[float]] = {}
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:

        def answer(index: int) -> None:
            stream = session(backend, plain, "ort-cpu", FixedIterations(2))
            found[index] = [stream(frame).residual for frame in FRAMES]

        threads = [threading.Thread(target=answer, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        answer(3)
    assert found[0] == found[1] == found[2] == found[3]


def test_a_poisoned_state_is_dropped(plain: Bundle) -> None:
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:
        stream = session(backend, plain, "ort-cpu", FixedIterations(2))
        stream(FRAMES[0])
        tensor = stream.state.states[stream.state.turn][0]
        tensor.update_inplace(np.full(tensor.shape(), np.nan, np.float32))
        found = stream(FRAMES[1])
    assert (found.warm, found.reason) == (False, "reset: non-finite state")
    assert np.isfinite(found.residual)


def test_a_graph_can_be_unloaded_and_comes_back(plain: Bundle) -> None:
    rung = plain.profile("ort-cpu").rungs[0]
    image = FRAMES[0]
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:
        state = backend.new_state()
        first = backend.run(rung, image, state).residual
        backend.unload(rung.graph)
        backend.unload(rung.graph)
        assert not backend.sessions
        assert not state.bindings
        state.reset()
        assert backend.run(rung, image, state).residual == first


def test_after_it_is_closed_it_says_so(plain: Bundle) -> None:
    backend = OrtGpuBackend(plain, "ort-cpu", HERE)
    state = backend.new_state()
    backend.close()
    backend.close()
    with pytest.raises(SessionError, match="closed"):
        backend.run(plain.profile("ort-cpu").rungs[0], FRAMES[0], state)
    assert backend.device_bytes() == 0


def test_a_state_of_another_backend_is_refused(plain: Bundle) -> None:
    rung = plain.profile("ort-cpu").rungs[0]
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as one:
        for other in (OrtGpuBackend(plain, "ort-cpu", HERE), OrtCpuBackend(plain, threads=1)):
            with closing(other), pytest.raises(SessionError, match="no state of this model"):
                one.run(rung, FRAMES[0], other.new_state())


# Where ONNX Runtime would go on by itself, on the CPU


def test_a_provider_that_is_left_out_is_an_error(plain: Bundle) -> None:
    """A build without CUDA takes the CPU instead, with a warning at most."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    place = replace(cuda(half=False), tensors="cpu")
    with (
        closing(OrtGpuBackend(plain, "ort-cpu", place)) as backend,
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(DeviceError, match=r"CUDAExecutionProvider.* CPU; .*edge-mdeq\[onnx"),
    ):
        backend.load(plain.profile("ort-cpu").rungs[0].graph)


def test_operators_that_go_to_the_cpu_are_an_error(plain: Bundle) -> None:
    """A provider that takes no operator of the graph at all is in every build."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes nothing")
    place = Place("Azure", (("AzureExecutionProvider", {}),), tensors="cpu")
    with (
        closing(OrtGpuBackend(plain, "ort-cpu", place)) as backend,
        pytest.raises(DeviceError, match="CPU"),
    ):
        backend.load(plain.profile("ort-cpu").rungs[0].graph)


def test_it_knows_which_providers_a_session_runs_on(plain: Bundle) -> None:
    with closing(OrtGpuBackend(plain, "ort-cpu", HERE)) as backend:
        graph = plain.profile("ort-cpu").rungs[0].graph
        backend.load(graph)
        assert running(backend.sessions[graph]) == {CPU}


@pytest.mark.parametrize("place", [cuda(True, limit=1), tensorrt(True, Path("x"), limit=1)])
def test_every_option_is_one_that_the_provider_knows(place: Place) -> None:
    """Looked up in the providers' libraries, where a build for GPUs is installed."""
    folder = Path(ort.__file__).parent / "capi"
    for provider, options in place.providers:
        name = provider.removesuffix("ExecutionProvider").lower()
        library = folder / f"libonnxruntime_providers_{name}.so"
        if not library.exists():
            pytest.skip("the installed ONNX Runtime is the one for CPUs")
        binding = next(folder.glob("onnxruntime_pybind11_state*.so"))  # it reads TensorRT's
        text = library.read_bytes() + binding.read_bytes()
        for option in options:
            assert option.encode() in text, option


# On a GPU


@pytest.fixture(params=["cuda", "tensorrt"])
def on_gpu(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path
) -> Iterator[tuple[Any, str]]:
    """A backend there, and the name of its profile."""
    if request.param == "tensorrt":
        tmp_path = tmp_path.parent / "engines-of-all-tests"
    try:
        backend, profile = open_backend(bundle, request.param, cache=tmp_path)
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))
    with closing(backend):
        yield backend, profile


@pytest.mark.gpu
@policies
def test_a_gpu_answers_as_the_cpu_does(
    on_gpu: tuple[Any, str], bundle: Bundle, policy: Policy
) -> None:
    backend, profile = on_gpu
    found = play(backend, bundle, profile, policy)
    agree(found, wanted(bundle, policy), share=0.99, rel=2e-2)


@pytest.mark.gpu
@policies
def test_a_gpu_keeps_the_states(on_gpu: tuple[Any, str], bundle: Bundle, policy: Policy) -> None:
    backend, profile = on_gpu
    check_traffic(backend, bundle, profile, policy)


@pytest.mark.gpu
def test_a_gpu_s_memory_is_bounded(on_gpu: tuple[Any, str], bundle: Bundle) -> None:
    backend, profile = on_gpu
    policy = POLICIES["tolerance"]
    with session(backend, bundle, profile, policy) as stream:
        for frame in FRAMES * 2:
            stream(frame)
        settled = backend.device_bytes()
        for frame in FRAMES * 10:
            stream(frame)
        grown = backend.device_bytes()
        with session(backend, bundle, profile, policy) as second:
            for frame in FRAMES:
                second(frame)
            both = backend.device_bytes()
    weights = sum(file.bytes for file in bundle.profile(profile).weights)
    print(f"{backend.name}: {settled / 1e6:.1f} MB on the device, {weights / 1e6:.1f} MB weights")
    assert settled > 0
    assert grown <= settled + 2**20, "another process of this GPU may be to blame"
    assert both <= grown + 2**23


@pytest.mark.gpu
def test_an_engine_is_built_once(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = bundle.profile("tensorrt-10").rungs[0].graph
    said = []
    for _ in range(2):
        try:
            backend, _ = open_backend(bundle, "tensorrt", cache=tmp_path)
        except (DeviceError, MissingExtraError) as error:
            pytest.skip(str(error))
        with closing(backend):
            caplog.clear()
            backend.load(graph)
            said.append("building a TensorRT engine" in caplog.text)
    assert said == [True, False]
    assert list(tmp_path.glob("engines/*/*.engine"))
