"""What an export can be asked for beside its rungs: targets, FP16, batches, the best iterate."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from quick_exports import two_images
from rich.console import Console
from rich.table import Table

import edge_mdeq
from edge_mdeq.bundle import open_bundle
from edge_mdeq.cli.inspect import inspect
from edge_mdeq.cli.tables import MIN_WIDTH, facts_table, parity_table, rungs_table
from edge_mdeq.errors import BundleError, ConfigError, ConvergenceError, SessionError
from edge_mdeq.solvers import Anderson, solve
from edge_mdeq.weights import load_weights, save_weights
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.convergence import Goal
from mdeq_export.images import scene
from mdeq_export.pieces import Inject
from mdeq_export.verify import distance, open_session
from mdeq_runtime import SessionSettings, UntilTolerance

Copy = Callable[[Path], Path]
Feeds = dict[str, NDArray[Any]]
PICTURES = np.stack([scene(seed, 64, 96) for seed in (3, 4, 5)])


def run(graph: Path, feeds: Feeds) -> Feeds:
    """A graph, from a cold start where no states are given."""
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    batch = len(feeds["image"])
    for given in session.get_inputs():
        if given.name not in feeds:
            shape = [n if isinstance(n, int) else batch for n in given.shape]
            feeds = feeds | {given.name: np.zeros(shape, np.float32)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def text_of(table: Table, width: int = 200) -> str:
    """As a terminal shows it, without line breaks."""
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


# Targets and half precision


@pytest.fixture(scope="module")
@two_images()
def half(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "half.mdeq"
    targets = ("tensorrt-8", "tensorrt-10", "tensorrt-11")
    settings = ExportSettings((1, 3), "anderson", {"m": 3}, targets=targets, half=True)
    export_bundle(segmenter_weights, out, settings)
    return out


def test_every_target_has_graphs_and_the_fallback_is_single(half: Path) -> None:
    manifest = open_bundle(half, verify=True).manifest
    found = {
        name: (profile.opset, profile.parts[0].precision, profile.flags)
        for name, profile in manifest.profiles.items()
    }
    assert found == {
        "ort-cpu": (21, "fp32", ()),
        "tensorrt-8": (17, "fp32", ("FP16",)),
        "tensorrt-10": (20, "fp16", ()),
        "tensorrt-11": (21, "fp16", ()),
    }
    for name, profile in manifest.profiles.items():
        for file in profile.files:
            if file.endswith(".onnx"):
                (opset,) = onnx.load(half / file, load_external_data=False).opset_import
                assert opset.version == found[name][0], file


def test_half_precision_halves_the_weights_and_stays_close(half: Path) -> None:
    manifest = open_bundle(half).manifest
    sizes = {name: p.weights[0].bytes for name, p in manifest.profiles.items()}
    assert sizes["tensorrt-10"] < 0.6 * sizes["ort-cpu"]
    errors = {r.precision: [] for r in manifest.verification.rungs}
    for rung in manifest.verification.rungs:
        errors[rung.precision].append(rung.state_rel)
    assert max(errors["fp32"]) < 1e-5 < min(errors["fp16"])
    assert max(errors["fp16"]) < 2e-2


def test_states_and_solver_stay_single(half: Path) -> None:
    parts = open_bundle(half).profile("tensorrt-10").parts[0]
    for file in (parts.pieces["s"], parts.pieces["r"], parts.pieces["a1"]):
        graph = onnx.load(half / file, load_external_data=False).graph
        types = {t.data_type for t in graph.initializer}
        assert onnx.TensorProto.FLOAT16 not in types
        assert not any(n.op_type == "Cast" for n in graph.node)
    manifest = open_bundle(half).manifest
    assert {spec.dtype for spec in (*manifest.states, *manifest.history)} == {"float32"}


def test_fp16_is_judged_with_its_roundings_that_the_cpu_would_leave_out(half: Path) -> None:
    """ONNX Runtime's CPU computes FP16 convolutions in FP32 and drops conversions that only round:
    a gate that let it would promise more than a device keeps."""
    graphs = open_bundle(half).profile("tensorrt-10").rungs
    graph = half / next(rung.graph for rung in graphs if rung.evaluations == 1)
    before = sorted(graph.parent.iterdir())
    feeds: Feeds = {"image": PICTURES[:1]}
    exact = run(half / "graphs/ort-cpu/solve-k1.onnx", feeds)
    spared = run(graph, feeds)
    session = open_session(graph)
    zeros = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
    names = [output.name for output in session.get_outputs()]
    rounded = dict(zip(names, session.run(None, feeds | zeros), strict=True))
    states = [name for name in names if name.startswith("next_state")]
    of = {
        kind: distance([found[n] for n in states], [exact[n] for n in states])
        for kind, found in (("spared", spared), ("rounded", rounded))
    }
    assert 1.2 * of["spared"] < of["rounded"] < 5e-3
    assert sorted(graph.parent.iterdir()) == before


def test_the_floor_of_half_precision_is_measured(half: Path) -> None:
    manifest = open_bundle(half).manifest
    floors = {name: p.parts[0].residual_floor for name, p in manifest.profiles.items()}
    assert floors["ort-cpu"] is None
    assert floors["tensorrt-8"] is None
    assert 1e-7 < (floors["tensorrt-10"] or 0) < 1e-2


def test_floor_and_flags_are_shown(half: Path) -> None:
    page = " ".join((half / "report.html").read_text().split())
    assert "tensorrt-10: in FP16 the residual does not get below" in page
    assert (
        "tensorrt-8: the graphs are in single precision, the builder of engines is to set FP16"
        in page
    )
    assert "fp16 2e-02 of the states" in page
    manifest = open_bundle(half).manifest
    rungs = text_of(rungs_table(manifest))
    assert rungs.count("3 fp32, flag FP16") == 1, "of TensorRT 8 alone"
    parity = text_of(parity_table(manifest), width=MIN_WIDTH)
    for rung in manifest.verification.rungs:
        shown = [f"{rung.profile} {rung.precision}", str(rung.evaluations), f"{rung.state_rel:.1e}"]
        assert " │ ".join(shown) in parity
    floor = manifest.profiles["tensorrt-10"].residual_floor
    assert f"a residual of {floor:.1e} (tensorrt-10)" in text_of(facts_table(manifest))


@two_images()
def test_a_tolerance_below_the_floor_is_refused(
    segmenter_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdeq_export.exporter.residual_floor", lambda *args: 3e-3)
    settings = ExportSettings((1,), "auto", goal=Goal(1e-3), half=True)
    with pytest.raises(ConvergenceError, match=r"ort-cpu: in FP16 .* below 3\.0e-03.*0\.001 is"):
        export_bundle(segmenter_weights, tmp_path / "a.mdeq", settings)
    assert not list(tmp_path.iterdir())
    settings = ExportSettings((2,), half=True)
    export_bundle(segmenter_weights, tmp_path / "a.mdeq", settings)
    with edge_mdeq.load(tmp_path / "a.mdeq") as model:
        assert model(PICTURES[0]).output.shape == (64, 96)
        with pytest.raises(SessionError, match=r"tolerance 0\.001 is below .* 3\.0e-03"):
            model.session(SessionSettings(UntilTolerance(1e-3)))


def test_a_misspelt_target_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"target 'tensort-10'.*did you mean 'tensorrt-10'"):
        ExportSettings(targets=("tensort-10",))


# Batches


@pytest.fixture(scope="module")
@two_images()
def batches(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("batches")
    kinds = {
        "one": ExportSettings((3,), "anderson", {"m": 2}),
        "two": ExportSettings((3,), "anderson", {"m": 2}, batch=2),
        "any": ExportSettings((3,), "anderson", {"m": 2}, dynamic_batch=True),
    }
    for name, settings in kinds.items():
        export_bundle(segmenter_weights, folder / f"{name}.mdeq", settings)
    return {name: folder / f"{name}.mdeq" for name in kinds}


@pytest.mark.parametrize(("kind", "size"), [("two", 2), ("any", 1), ("any", 2), ("any", 3)])
def test_each_image_of_a_batch_is_answered_as_alone(
    batches: dict[str, Path], kind: str, size: int
) -> None:
    graph = "graphs/ort-cpu/solve-k3.onnx"
    alone = [run(batches["one"] / graph, {"image": p[None]}) for p in PICTURES[:size]]
    together = run(batches[kind] / graph, {"image": PICTURES[:size]})
    for name, values in together.items():
        expected = np.concatenate([answer[name] for answer in alone])
        assert values.shape == expected.shape
        if name == "output":
            assert (values == expected).mean() > 0.999
        else:
            np.testing.assert_allclose(values, expected, atol=1e-4)


def test_the_manifest_names_the_batch(batches: dict[str, Path]) -> None:
    for kind, size in (("one", 1), ("two", 2), ("any", -1)):
        manifest = open_bundle(batches[kind], verify=True).manifest
        specs = (
            manifest.input.tensor, manifest.output.tensor, manifest.residual, manifest.injection,
            *manifest.states, *manifest.history,
        )  # fmt: skip
        assert {spec.shape[0] for spec in specs} == {size}


@pytest.mark.parametrize(
    ("kind", "says"),
    [("one", "one image"), ("two", "2 images"), ("any", "any number of images")],
)
def test_inspect_names_the_batch_and_what_can_be_done_with_it(
    batches: dict[str, Path], kind: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(batches[kind], require_signature=[], as_json=False)
    shown = capsys.readouterr().out
    assert f"{says} at once, uint8 RGB, 64 x 96" in shown
    assert ("next: edge-mdeq run" in shown) == (kind != "two"), "a stream is no batch of two"


def test_a_stream_takes_one_frame_at_a_time(batches: dict[str, Path]) -> None:
    with edge_mdeq.load(batches["any"]) as model, edge_mdeq.load(batches["one"]) as single:
        mask = model(PICTURES[0]).output
        assert (mask == single(PICTURES[0]).output).mean() > 0.999
    with pytest.raises(BundleError, match=r"batches of 2.*--dynamic-batch"):
        edge_mdeq.load(batches["two"])


def test_batch_and_open_batch_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        ExportSettings(batch=2, dynamic_batch=True)
    with pytest.raises(ConfigError, match="batch is 0"):
        ExportSettings(batch=0)


# The best iterate


@two_images()
def test_the_best_iterate_of_each_image_is_returned(
    segmenter_weights: Path, tmp_path: Path
) -> None:
    """Weights that make f expand: the residual goes up and down, for each image elsewhere."""
    model, card = load_weights(segmenter_weights)
    with torch.no_grad():
        for post in model.cell.post:
            post.norm.weight *= 40  # type: ignore[operator]
    weights = tmp_path / "wild.safetensors"
    save_weights(model, card, weights)
    settings = ExportSettings((7,), "anderson", {"m": 2}, best=True, batch=3)
    export_bundle(weights, tmp_path / "a.mdeq", settings)
    found = run(tmp_path / "a.mdeq/graphs/ort-cpu/solve-k7.onnx", {"image": PICTURES})
    with torch.no_grad():
        u = Inject(model, card.input)(torch.from_numpy(PICTURES))
        f, zero = model.bind(u), model.zero_state(u)
        best, last = (solve(f, zero, Anderson(2), 7, best=b) for b in (True, False))
    np.testing.assert_allclose(found["residual"], best.residual.numpy(), rtol=1e-3)
    assert (best.residual < last.residual).any(), "the last iterate would not do"
    for i, z in enumerate(best.value):
        np.testing.assert_allclose(found[f"next_state_{i}"], z.numpy(), atol=1e-3, rtol=1e-3)
    assert open_bundle(tmp_path / "a.mdeq").manifest.solver.best
