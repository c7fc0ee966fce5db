"""What a stranger's bundle cannot do: reach files outside, wait for ever, or bring code."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.graph_files import DEEPEST, look_through
from edge_mdeq.errors import BundleError
from mdeq_runtime import Model

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).parents[2]
Copy = Callable[[Path], Path]


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest's entry right again, as whoever makes a bundle can."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"sha256": digest, "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def graph_names(bundle: Path) -> tuple[str, ...]:
    return open_bundle(bundle).profile("ort-cpu").all_graphs


def test_what_the_walk_finds_is_what_onnx_finds(segmenter_bundle: Path) -> None:
    for name in graph_names(segmenter_bundle):
        model = onnx.load(segmenter_bundle / name, load_external_data=False)
        tensors = [
            *model.graph.initializer,
            *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t")),
        ]
        files = {e.value for t in tensors for e in t.external_data if e.key == "location"}
        found = look_through((segmenter_bundle / name).read_bytes(), name)
        assert found.files == files
        assert found.domains == {node.domain for node in model.graph.node}


def external(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value=location)
    return tensor


def within(node: onnx.NodeProto) -> onnx.ModelProto:
    return onnx.ModelProto(graph=onnx.GraphProto(node=[node]))


def hidden(location: str) -> dict[str, onnx.ModelProto]:
    """A model for every place where a tensor can be."""
    tensor = external(location)
    constant = onnx.NodeProto(op_type="Constant")
    constant.attribute.add(name="value", type=4).t.CopyFrom(tensor)
    several = onnx.NodeProto(op_type="Constant")
    several.attribute.add(name="value").tensors.append(tensor)
    sparse = onnx.NodeProto(op_type="Constant")
    sparse.attribute.add(name="value").sparse_tensor.values.CopyFrom(tensor)
    branch = onnx.NodeProto(op_type="If")
    branch.attribute.add(name="then_branch").g.node.append(constant)
    branches = onnx.NodeProto(op_type="If")
    branches.attribute.add(name="branches").graphs.add().initializer.append(tensor)
    sparse_graph = onnx.GraphProto()
    sparse_graph.sparse_initializer.add().indices.CopyFrom(tensor)
    trained = onnx.ModelProto()
    trained.training_info.add().algorithm.initializer.append(tensor)
    function = onnx.ModelProto()
    function.functions.add(name="f").node.append(constant)
    return {
        "initializer": onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])),
        "attribute": within(constant),
        "attributes": within(several),
        "sparse attribute": within(sparse),
        "branch": within(branch),
        "branches": within(branches),
        "sparse initializer": onnx.ModelProto(graph=sparse_graph),
        "training": trained,
        "function": function,
    }


@pytest.mark.parametrize("place", sorted(hidden("x")))
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../../../secret.bin", "./weights-fp32.bin", "other.bin", ""]
)
def test_no_tensor_lies_outside_of_the_named_weights(
    segmenter_bundle: Path, own_copy: Copy, place: str, location: str
) -> None:
    bundle, name = own_copy(segmenter_bundle), graph_names(segmenter_bundle)[0]
    rewrite(bundle, name, hidden(location)[place].SerializeToString())
    with pytest.raises(BundleError, match=r"refers to the file .* not among the weights"):
        open_bundle(bundle).file(name)
    with pytest.raises(BundleError, match="refers to the file"), Model(bundle, threads=1) as model:
        model.backend.load(name)


def test_another_profiles_weights_are_not_this_ones(segmenter_bundle: Path, own_copy: Copy) -> None:
    bundle, name = own_copy(segmenter_bundle), graph_names(segmenter_bundle)[0]
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["profiles"]["ort-cpu"]["weights"] = []
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not among the weights"):
        open_bundle(bundle).file(name)


@pytest.mark.parametrize("domain", ["com.microsoft", "trt.plugins"])
def test_operators_that_may_bring_code_are_refused(
    segmenter_bundle: Path, own_copy: Copy, domain: str
) -> None:
    """``EPContext`` carries a TensorRT engine, or the path of one."""
    bundle, name = own_copy(segmenter_bundle), graph_names(segmenter_bundle)[0]
    node = onnx.NodeProto(op_type="EPContext", domain=domain)
    branch = onnx.NodeProto(op_type="If")
    branch.attribute.add(name="then_branch").g.node.append(node)
    rewrite(bundle, name, within(branch).SerializeToString())
    with pytest.raises(BundleError, match=f"operators of '{domain}'"):
        open_bundle(bundle, verify=True)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x3a\x7f", "cut short"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"\x3a" + b"\xff" * 20, "cut short"),
        (b"\x0d\x00", "cut short"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x02\x00", "the tag 2"),
        (b"\xba\x80\x80\x80\x10\x00", "the tag 4294967354"),  # the graph, to who keeps 32 bits
    ],
)
def test_what_is_no_protocol_buffer_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=f"is not an ONNX graph: .*{why}"):
        look_through(data, "x.onnx")


def test_graphs_in_graphs_come_to_an_end() -> None:
    graph = onnx.GraphProto()
    for _ in range(DEEPEST):
        node = onnx.NodeProto(op_type="If")
        node.attribute.add(name="then_branch").g.CopyFrom(graph)
        graph = onnx.GraphProto(node=[node])
    with pytest.raises(BundleError, match="nested without end"):
        look_through(onnx.ModelProto(graph=graph).SerializeToString(), "x.onnx")


def test_mutated_graphs_are_read_or_refused(segmenter_bundle: Path) -> None:
    """Never anything else, and never for long."""
    import random

    draw = random.Random(0)
    whole = (segmenter_bundle / graph_names(segmenter_bundle)[0]).read_bytes()[:3000]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            look_through(bytes(data[: draw.randint(1, len(data))]), "x.onnx")
        except BundleError:
            continue


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd"])
def test_a_manifest_that_leads_out_is_not_read(tmp_path: Path, target: str) -> None:
    (tmp_path / "manifest.json").symlink_to(target)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(tmp_path)


def test_a_graph_that_is_a_pipe_is_not_waited_for(segmenter_bundle: Path, own_copy: Copy) -> None:
    bundle, name = own_copy(segmenter_bundle), graph_names(segmenter_bundle)[0]
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(bundle, verify=True)


EXECUTING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
DEVICE = ("runtime/mdeq_runtime", "edge_mdeq/bundle", "edge_mdeq/datasets", "edge_mdeq/cli")


def executes(tree: ast.AST) -> set[str]:
    """What of a program runs what it reads: modules that unpickle, and built-ins that evaluate."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & EXECUTING
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module.split(".")[0]} & EXECUTING
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            found |= {name} & {"eval", "exec"}
            found |= {k.arg for k in node.keywords if k.arg == "allow_pickle"}
    return found


@pytest.mark.parametrize("folder", DEVICE)
def test_nothing_that_the_device_runs_unpickles_or_evaluates(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(f): e for f in files if (e := executes(ast.parse(f.read_text())))} == {}


def test_the_search_for_pickles_finds_one() -> None:
    assert executes(ast.parse("from pickle import loads\nnp.load(f, allow_pickle=True)"))
