"""Write what these tests need of the enumerated TensorRT APIs: ``reduce_api.py SOURCE [OUT]``.

SOURCE holds one JSON file per version, enumerated from the real bindings: the members of its
enums, the attributes of its classes, and the argument names of methods. Overloaded methods are
listed there without arguments, like properties; their overloads stand below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VERSIONS = (
    "tensorrt_8.6.1",
    "tensorrt_10.3.0",
    "tensorrt_10.16.1.11",
    "tensorrt_11.4.0.106",
    "tensorrt_rtx_1.7.1.116",
)
CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "Logger",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineCapability",
    "EngineInvalidityDiagnostics",
    "EngineStat",
    "EngineValidity",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorIOMode",
    "TensorLocation",
    "TilingOptimizationLevel",
)
# The builder can give kernel text beside the plan, too. The context takes a strategy from 10.0 on;
# where there is a runtime configuration, that as well.
OVERLOADS: dict[str, list[list[str]]] = {
    "Builder.build_serialized_network": [["network", "config"]],
    "ICudaEngine.create_execution_context": [["strategy"], ["runtime_config"]],
    "Runtime.deserialize_cuda_engine": [["serialized_engine"]],
    "IExecutionContext.set_input_shape": [["name", "shape"]],
}


def reduce(api: dict[str, Any]) -> dict[str, Any]:
    """One version's list: per class, None for a property and argument lists for a method."""
    classes = {}
    for name in CLASSES:
        members = api["classes"].get(name)
        if members is None or name in api["enums"]:
            continue
        classes[name] = {
            member: overloads(f"{name}.{member}", arguments)
            for member, arguments in sorted(members.items())
            if not (name == "INetworkDefinition" and member.startswith("add_"))
        }
    enums = {name: api["enums"][name] for name in ENUMS if name in api["enums"]}
    return {"version": api["version"], "classes": classes, "enums": enums}


def overloads(name: str, arguments: list[str] | None) -> list[list[str]] | None:
    if name in OVERLOADS and arguments is None:
        return OVERLOADS[name]
    if arguments is None or arguments == ["[x]"]:  # a property, or a constant
        return None
    return [arguments]


def main(source: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for name in VERSIONS:
        api = json.loads((source / f"{name}.json").read_text())
        short = name.removeprefix("tensorrt_")
        text = json.dumps(reduce(api), indent=1, sort_keys=True)
        (out / f"{short}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else Path(__file__).parent / "api")
