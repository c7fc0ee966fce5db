"""The doubles are as strict as they promise: without that, what they prove proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import VERSIONS, Absent, NotModelled, TensorRT

from mdeq_runtime.tensorrt.versions import flavour_of

versions = pytest.mark.parametrize("version", VERSIONS)


@versions
def test_a_double_says_which_version_it_is(version: str) -> None:
    double = TensorRT(version)
    assert double.version.startswith(flavour_of(double.module, double.rtx).version)


@versions
def test_what_a_version_lacks_is_an_error_that_nobody_catches(version: str) -> None:
    double = TensorRT(version)
    trt = double.module
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    with pytest.raises(Absent):
        trt.BuilderFlag.FASTER  # noqa: B018
    with pytest.raises(Absent):
        trt.Accelerator  # noqa: B018
    with pytest.raises(Absent):
        hasattr(config, "turbo")
    with pytest.raises(Absent):
        config.turbo = True
    with pytest.raises(Absent):
        builder.create_network(speed=1)
    with pytest.raises(NotModelled):
        builder.num_DLA_cores  # noqa: B018
    assert not issubclass(Absent, Exception)


def test_versions_differ_as_the_real_ones_do() -> None:
    old, new = TensorRT("8.6.1"), TensorRT("11.4.0.106")
    assert int(old.module.BuilderFlag.FP16) >= 0
    with pytest.raises(Absent):
        new.module.BuilderFlag.FP16  # noqa: B018
    with pytest.raises(Absent):
        old.module.IProgressMonitor  # noqa: B018


def test_calls_are_recorded_by_the_names_of_their_arguments() -> None:
    double = TensorRT("10.3.0")
    trt = double.module
    config = trt.Builder(trt.Logger()).create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 5)
    config.builder_optimization_level = 2
    pool, level = double.calls[-2:]
    assert pool.arguments == {"pool": trt.MemoryPoolType.WORKSPACE, "pool_size": 5}
    assert level.name == "IBuilderConfig.builder_optimization_level="
    assert level.arguments["value"] == 2


@versions
def test_a_plan_is_what_the_same_version_deserialises(version: str, tmp_path: Path) -> None:
    double = TensorRT(version)
    trt = double.module
    graph = tmp_path / "net.onnx"
    graph.write_bytes(b"")
    logger = trt.Logger()
    builder = trt.Builder(logger)
    network = builder.create_network()
    assert trt.OnnxParser(network, logger).parse_from_file(str(graph))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    runtime = trt.Runtime(logger)
    assert runtime.deserialize_cuda_engine(bytes(plan)).name == str(graph)
    assert runtime.deserialize_cuda_engine(bytes(plan)[:-5]) is None
    assert "Serialization assertion" in logger.heard[-1]


def test_what_is_to_fail_fails_as_tensorrt_does() -> None:
    double = TensorRT("10.3.0")
    trt = double.module
    logger = trt.Logger()
    double.fail["OnnxParser.parse_from_file"] = "unsupported operator"
    parser = trt.OnnxParser(trt.Builder(logger).create_network(), logger)
    assert parser.parse_from_file("net.onnx") is False
    assert parser.num_errors == 1
    assert parser.get_error(0).desc() == "unsupported operator"
