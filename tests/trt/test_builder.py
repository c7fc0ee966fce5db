"""Each version is told what it has, and nothing that it lacks: a double of it would not take that.

What the real compiler makes of it is in ``test_builds``, for the one version that runs here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from doubles import VERSIONS, TensorRT

from edge_mdeq.bundle import Bundle
from edge_mdeq.errors import ConfigError, EngineError
from mdeq_runtime.tensorrt.builder import build, layers_of
from mdeq_runtime.tensorrt.listening import LogReader, Phases, Progress, logger
from mdeq_runtime.tensorrt.network import Network, parse
from mdeq_runtime.tensorrt.settings import BuildSettings, in_fp16
from mdeq_runtime.tensorrt.versions import Flavour, Release, flavour_of

NEW = [version for version in VERSIONS if version != "8.6.1"]


@pytest.fixture(params=VERSIONS)
def double(request: pytest.FixtureRequest) -> TensorRT:
    return TensorRT(request.param)


@pytest.fixture
def graph(plain: Bundle) -> Path:
    return plain.file("graphs/ort-cpu/advance-k1.onnx")


def parsed(double: TensorRT, graph: Path, said: list[str] | None = None) -> Network:
    flavour = flavour_of(double.module, double.rtx)
    heard = said if said is not None else []
    return parse(flavour, graph, logger(flavour, lambda severity, text: heard.append(text)))


def test_every_version_builds(double: TensorRT, graph: Path) -> None:
    plan = build(parsed(double, graph), BuildSettings())
    assert plan.bytes > 0
    assert double.count("Builder.build_serialized_network") == 1
    (pool,) = double.named("IBuilderConfig.set_memory_pool_limit")
    assert str(pool.arguments["pool"]) == "MemoryPoolType.WORKSPACE"
    assert pool.arguments["pool_size"] == 2**28


def test_timings_are_used_again_except_by_rtx_where_they_are_a_no_op(
    double: TensorRT, graph: Path
) -> None:
    plan = build(parsed(double, graph), BuildSettings(), b"of last time")
    made = double.named("IBuilderConfig.create_timing_cache")
    if double.rtx:
        assert (made, plan.timings) == ([], None)
    else:
        assert made[0].arguments["serialized_timing_cache"] == b"of last time"
        assert plan.timings == b"of last time"


@pytest.mark.parametrize("timings", [b"damaged", b"of another device"])
def test_timings_that_do_not_fit_are_begun_anew(
    double: TensorRT, graph: Path, timings: bytes
) -> None:
    plan = build(parsed(double, graph), BuildSettings(), timings)
    assert plan.bytes > 0
    if not double.rtx:
        assert plan.timings == b"timings"
        assert (
            double.named("IBuilderConfig.set_timing_cache")[-1].arguments["cache"].model.content
            == b""
        )


def test_norms_are_tensorrts_own_and_no_plugins(double: TensorRT, graph: Path) -> None:
    parsed(double, graph)
    (call,) = double.named("OnnxParser.set_flag")
    assert str(call.arguments["flag"]) == "OnnxParserFlag.NATIVE_INSTANCENORM"


def test_progress_is_heard_where_there_is_a_monitor(double: TensorRT, graph: Path) -> None:
    heard: list[Progress] = []

    def report(progress: Progress) -> bool:
        heard.append(progress)
        return True

    build(parsed(double, graph), BuildSettings(), report=report)
    if double.version.startswith("8"):
        assert heard == []
    else:
        assert [round(progress.done, 2) for progress in heard] == [0.0, 0.33, 0.67, 1.0, 1.0]


@pytest.mark.parametrize("version", NEW)
def test_a_listener_ends_a_build(version: str, graph: Path) -> None:
    double = TensorRT(version)
    with pytest.raises(EngineError, match="built no engine"):
        build(parsed(double, graph), BuildSettings(), report=lambda progress: False)


def test_a_refusing_parser_is_quoted(double: TensorRT, graph: Path) -> None:
    double.fail["OnnxParser.parse_from_file"] = "no importer for it"
    with pytest.raises(EngineError) as caught:
        parsed(double, graph)
    said = str(caught.value)
    assert "node 7" in said
    assert "no importer for it" in said
    assert str(graph) in said
    assert ("'node_7' (Odd)" in said) is not double.version.startswith("8")


def test_a_failing_compiler_is_an_error_and_its_words_are_heard(
    double: TensorRT, graph: Path
) -> None:
    said: list[str] = []
    network = parsed(double, graph, said)
    double.fail["Builder.build_serialized_network"] = "no tactic fits into the workspace"
    with pytest.raises(EngineError, match=r"built no engine of .*advance-k1.onnx.*--workspace"):
        build(network, BuildSettings())
    assert said == ["no tactic fits into the workspace"]


def test_half_is_a_flag_for_8_6_which_keeps_norms_and_solver_in_single_precision(
    graph: Path,
) -> None:
    double = TensorRT("8.6.1")
    build(parsed(double, graph), BuildSettings(half=True))
    flags = [str(call.arguments["flag"]) for call in double.named("IBuilderConfig.set_flag")]
    assert flags == ["BuilderFlag.FP16", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"]
    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    kept = [n for n in nodes if n.op_type not in ("Conv", "Resize", "Shape", "ArgMax")]
    assert double.count("ILayer.precision=") == len(kept)
    assert len(kept) < len(nodes)
    values = {str(call.arguments["value"]) for call in double.named("ILayer.precision=")}
    assert values == {"DataType.FLOAT"}


@pytest.mark.parametrize("version", NEW)
def test_elsewhere_it_lies_in_the_graph(version: str, graph: Path) -> None:
    with pytest.raises(ConfigError, match="precision lies in the graph"):
        build(parsed(TensorRT(version), graph), BuildSettings(half=True))


def test_whether_to_set_the_flag(plain: Bundle) -> None:
    profile = plain.profile("tensorrt-8")
    assert in_fp16(Release((8, 6, 1), False), profile, True)
    assert not in_fp16(Release((8, 6, 1), False), profile, False)
    assert not in_fp16(Release((10, 3, 0), False), profile, False)
    with pytest.raises(ConfigError, match="export the bundle again with --half"):
        in_fp16(Release((10, 3, 0), False), profile, True)


OPTIONS: dict[str, dict[str, Any]] = {
    "level": {"level": 2},
    "streaming": {"stream_weights": True},
    "version": {"version_compatible": True},
    "hardware": {"compatibility": "ampere_plus"},
    "another hardware": {"compatibility": "same_compute_capability"},
    "capability": {"capabilities": ("SM86", "SM89")},
}
LACKS = {
    "8.6.1": {"streaming", "another hardware", "capability"},
    "10.3.0": {"another hardware", "capability"},
    "10.16.1.11": {"capability"},
    "11.4.0.106": {"capability"},
    "rtx_1.7.1.116": {"version"},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_set_or_its_absence_is_told(version: str, option: str, graph: Path) -> None:
    double = TensorRT(version)
    network, settings = parsed(double, graph), BuildSettings(**OPTIONS[option])
    if option in LACKS[version]:
        with pytest.raises(ConfigError, match="TensorRT"):
            build(network, settings)
        assert double.count("Builder.build_serialized_network") == 0
    else:
        build(network, settings)


def test_rtx_builds_one_plan_for_several_capabilities(graph: Path) -> None:
    double = TensorRT("rtx_1.7.1.116")
    build(parsed(double, graph), BuildSettings(capabilities=("SM86", "SM89")))
    (count,) = double.named("IBuilderConfig.num_compute_capabilities=")
    assert count.arguments["value"] == 2
    chosen = double.named("IBuilderConfig.set_compute_capability")
    assert [(str(c.arguments["compute_capability"]), c.arguments["index"]) for c in chosen] == [
        ("ComputeCapability.SM86", 0),
        ("ComputeCapability.SM89", 1),
    ]


def test_an_open_batch_gets_a_profile(double: TensorRT, graph: Path, tmp_path: Path) -> None:
    model = onnx.load(str(graph), load_external_data=False)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    (tmp_path / "open.onnx").write_bytes(model.SerializeToString())
    network = parsed(double, tmp_path / "open.onnx")
    build(network, BuildSettings(batch=(1, 2, 8)))
    shapes = double.named("IOptimizationProfile.set_shape")
    assert {call.arguments["input"] for call in shapes} >= {"injection", "state_0"}
    for call in shapes:
        sizes = [call.arguments[name][0] for name in ("min", "opt", "max")]
        assert sizes == [1, 2, 8]
    assert double.count("IBuilderConfig.add_optimization_profile") == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"workspace": 0}, "workspace of 0 bytes"),
        ({"level": 6}, "not one of 0 to 5"),
        ({"batch": (2, 1, 4)}, "the least, the usual and the largest"),
        ({"batch": (0, 1, 4)}, "the least, the usual and the largest"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        BuildSettings(**given)


def test_the_inspector_gives_json(double: TensorRT) -> None:
    class Inspected:
        def create_engine_inspector(self) -> Any:
            return self

        def get_engine_information(self, form: Any) -> str:
            return f"as {form}"

    flavour: Flavour = flavour_of(double.module, double.rtx)
    assert layers_of(flavour, Inspected()) == "as LayerInformationFormat.JSON"


def test_phases_within_phases_are_parts_of_a_step_and_never_go_back() -> None:
    phases = Phases()
    seen = [
        phases.start("all", None, 2).done,
        phases.start("first", "all", 4).done,
        phases.step("first", 2).done,
        phases.finish("first").done,
        phases.step("all", 1).done,
        phases.start("beside", "all", 2).done,
        phases.step("beside", 1).done,
        phases.finish("beside").done,
        phases.finish("all").done,
    ]
    assert seen == [0.0, 0.0, 0.25, 0.5, 0.5, 0.5, 0.75, 1.0, 1.0]


def test_a_phase_that_is_its_own_parent_does_not_hang() -> None:
    phases = Phases()
    phases.start("odd", "odd", 2)
    assert 0 <= phases.step("odd", 1).done <= 1


def test_a_log_tells_how_far_8_6_is() -> None:
    """In the form that its verbose log has: layers left after each fusion, then those timed."""
    reader = LogReader()
    assert reader.hear("Registered plugin creator - ::Clip_TRT version 1") is None
    assert reader.hear("After vertical fusions: 8 layers") == Progress("fusing layers", 0.0)
    assert reader.hear("After concat removal: 4 layers") == Progress("fusing layers", 0.0)
    assert reader.hear("--------------- Timing Runner: <reformat> (Reformat)") is None
    first = reader.hear("--------------- Timing Runner: conv1 + relu1 (CaskConvolution)")
    assert first == Progress("timing layers", 0.25)
    assert reader.hear("--------------- Timing Runner: conv1 + relu1 (CudnnConvolution)") == first
    costs = "=============== Computing costs for "
    assert reader.hear(costs) is None
    assert reader.hear(f"{costs}conv2") == Progress("timing layers", 0.5)


def test_8_6_is_heard_through_its_log(graph: Path) -> None:
    double = TensorRT("8.6.1")
    heard: list[Progress] = []
    complaints: list[tuple[str, str]] = []

    def report(progress: Progress) -> bool:
        heard.append(progress)
        return True

    listener = logger(
        flavour_of(double.module),
        lambda severity, text: complaints.append((severity, text)),
        report,
    )
    severity = double.module.ILogger.Severity
    listener.log(severity.VERBOSE, "After concat removal: 4 layers")
    listener.log(severity.VERBOSE, "--------------- Timing Runner: conv1 (CaskConvolution)")
    listener.log(severity.ERROR, "out of memory")
    listener.log(severity.INFO, "[MemUsageChange] Init CUDA: CPU +2, GPU +0")
    assert [progress.done for progress in heard] == [0.0, 0.25]
    assert complaints == [("error", "out of memory")]
