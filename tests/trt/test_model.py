"""A model opened on its engines, as programs open one; the GPU and TensorRT are doubles."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import fake_cuda
import pytest
from doubles import TensorRT
from playing import FRAMES
from tensorrt_models import engine_bytes

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import EngineError, MemoryLimitError
from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
from mdeq_runtime.device_key import tag
from mdeq_runtime.doctor.probes import try_bundle
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.tensorrt import opening
from mdeq_runtime.tensorrt.engines import PURPOSE, EngineStore
from mdeq_runtime.tensorrt.identity import identify
from mdeq_runtime.tensorrt.records import read_record, write_record
from mdeq_runtime.tensorrt.settings import BuildSettings, needed
from mdeq_runtime.tensorrt.versions import Release, flavour_of

RELEASE = Release((10, 3, 0), False)
SETTINGS = SessionSettings(FixedIterations(2))
WEIGHTS = 5 * 2**20  # bytes of filling in each engine


@pytest.fixture
def jetson(
    plain: Bundle,
    gpu: fake_cuda.Gpu,
    ten: TensorRT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundle:
    """A bundle with engines for a board that has all that these need."""
    (tmp_path / "site" / "pycuda").mkdir(parents=True)
    (tmp_path / "site" / "pycuda" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(opening, "find_release", lambda: RELEASE)
    monkeypatch.setattr(opening, "find_flavour", lambda rtx: flavour_of(ten.module))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = open_bundle(Path(shutil.copytree(plain.path, tmp_path / "own.mdeq")))
    profile = bundle.profile(RELEASE.profile)
    store = EngineStore(bundle, RELEASE.profile, identify(RELEASE, profile, BuildSettings()))
    for graph in needed(profile, [SETTINGS.policy, UntilTolerance()]):
        path = store.path(graph)
        path.write_bytes(engine_bytes("10.3.0", bundle.path / graph, weights=WEIGHTS))
        store.record(graph, path, {}, {})
    return bundle


def test_by_itself_it_takes_engines_that_fit(jetson: Bundle) -> None:
    with Model(jetson.path, SETTINGS, device="cpu") as expected:
        wanted = [result.output for result in expected.stream(FRAMES)]
    with Model(jetson.path, SETTINGS) as model:
        assert model.backend.name == "TensorRT 10.3.0"
        assert model.profile == "tensorrt-10"
        found = list(model.stream(FRAMES))
    assert all((a.output == b).all() for a, b in zip(found, wanted, strict=True))


def test_a_damaged_engine_leaves_the_frames_to_onnx_runtime(
    jetson: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    for engine in jetson.path.glob("engines/*/solve-k2.engine"):
        engine.write_bytes(engine.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING), Model(jetson.path, SETTINGS) as model:
        assert model(FRAMES[0]).iterations == 2
        assert model.profile != "tensorrt-10"
    assert "cut short, or altered" in caplog.text
    with pytest.raises(EngineError, match="cut short"):
        Model(jetson.path, SETTINGS, device="tensorrt")


def test_so_does_one_that_tensorrt_refuses(
    jetson: Bundle, ten: TensorRT, caplog: pytest.LogCaptureFixture, gpu: fake_cuda.Gpu
) -> None:
    ten.fail["Runtime.deserialize_cuda_engine"] = "serialization assertion failed"
    with caplog.at_level(logging.WARNING), Model(jetson.path, SETTINGS) as model:
        assert model(FRAMES[0]).iterations == 2
    assert "serialization assertion failed" in caplog.text
    assert not gpu.blocks
    assert gpu.retained == 0


@pytest.mark.parametrize("call", ["Runtime.deserialize_cuda_engine", "Runtime"])
def test_so_does_what_nobody_expects(
    jetson: Bundle,
    ten: TensorRT,
    call: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    gpu: fake_cuda.Gpu,
) -> None:
    """A runtime that cannot be made is a TypeError of TensorRT's bindings."""

    def refuse(logger: object) -> None:
        raise TypeError("factory function returned nullptr")

    if call == "Runtime":
        monkeypatch.setitem(vars(ten.module), "Runtime", refuse)
    else:
        ten.fail[call] = TypeError("factory function returned nullptr")
    with caplog.at_level(logging.WARNING), Model(jetson.path, SETTINGS) as model:
        assert model(FRAMES[0]).iterations == 2
        assert model.profile != "tensorrt-10"
    assert "factory function returned nullptr" in caplog.text
    assert not gpu.blocks
    assert gpu.retained == 0


@pytest.mark.parametrize("compatible", [False, True])
def test_only_version_compatible_engines_may_bring_code(
    jetson: Bundle, ten: TensorRT, compatible: bool
) -> None:
    """Of the older version that built them; TensorRT refuses it by itself."""
    for path in jetson.path.glob("engines/*/*.json"):
        built = read_record(path)
        built = replace(built, identity=replace(built.identity, version_compatible=compatible))
        write_record(path, replace(built, tag=tag(PURPOSE, built.content)))
    with Model(jetson.path, SETTINGS) as model:
        assert model.profile == "tensorrt-10"
    allowed = [call.arguments["value"] for call in ten.named("Runtime.engine_host_code_allowed=")]
    assert allowed == [True] * compatible


def test_on_a_board_whose_gpu_shares_it_engines_are_in_the_memory_limit(jetson: Bundle) -> None:
    base = resident_bytes() or 0
    with Model(jetson.path, SETTINGS, memory_limit=base + 2**30) as model:
        report = model.memory()
        list(model.stream(FRAMES[:2]))
        report = model.memory()
        assert report.predicted is not None
        assert report.predicted > base + WEIGHTS


def test_a_memory_limit_asks_for_no_engines_that_the_policy_does_not(jetson: Bundle) -> None:
    for engine in jetson.path.glob("engines/*/*.engine"):
        if engine.stem != "solve-k2":
            engine.unlink()
    limit = (resident_bytes() or 0) + 2**30
    with Model(jetson.path, SETTINGS, device="tensorrt", memory_limit=limit) as model:
        assert model(FRAMES[0]).iterations == 2


def test_what_does_not_fit_runs_elsewhere_or_is_refused(
    jetson: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MemoryLimitError, match="device memory"):
        Model(jetson.path, SETTINGS, device="tensorrt", memory_limit=2**20)
    with caplog.at_level(logging.WARNING), pytest.raises(MemoryLimitError, match="least it needs"):
        Model(jetson.path, SETTINGS, memory_limit=2**20)
    assert "not running on TensorRT:" in caplog.text


def test_sessions_with_another_policy_need_engines_of_their_own(jetson: Bundle) -> None:
    with Model(jetson.path, SETTINGS) as model:
        with model.session(SessionSettings(UntilTolerance(1e-9, 3))) as stream:
            assert stream(FRAMES[0]).iterations == 3
        with pytest.raises(EngineError, match=r"solve-k4.onnx has no engine"):
            model.session(SessionSettings(FixedIterations(4)))
        assert model(FRAMES[0]).iterations == 2


def test_the_doctor_finds_engines_that_fit_and_says_why_others_do_not(
    jetson: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = try_bundle(jetson.path)["profiles"]
    assert found["tensorrt-10"]["error"] is None
    assert "the TensorRT here takes tensorrt-10" in found["tensorrt-rtx"]["error"]
    monkeypatch.setattr(opening, "find_release", lambda: Release((10, 13, 3), False))
    found = try_bundle(jetson.path)["profiles"]
    assert "TensorRT 10.3.0, here 10.13.3" in found["tensorrt-10"]["error"]
