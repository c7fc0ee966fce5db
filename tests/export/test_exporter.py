"""The export from end to end: what a bundle says of itself is true, and what fails leaves nothing.

Tracing costs seconds, so that a test that needs a whole export looks at several things.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from quick_exports import two_images

import edge_mdeq
from edge_mdeq.bundle import Bundle, TensorSpec, Tolerance, open_bundle
from edge_mdeq.errors import (
    BundleError,
    ConfigError,
    ParityError,
)
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.images import scene
from mdeq_export.passes import LowerGroupNorm
from mdeq_export.verify import TOLERANCES, require_parity, tolerances_with

Copy = Callable[[Path], Path]
DTYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


BESIDE = ("measurements.json", "report.html", "report.json")  # the manifest's hashes
OF_A_MOMENT = BESIDE[:2]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_true_to_its_graphs(bundle: Bundle) -> None:
    """What the manifest says of inputs and outputs is what ONNX Runtime finds."""
    manifest = bundle.manifest
    states = manifest.states
    inputs = [manifest.input.tensor, *states]
    outputs = [
        manifest.output.tensor,
        *([manifest.confidence] if manifest.confidence else []),
        *(
            TensorSpec(name, spec.dtype, spec.shape)
            for name, spec in zip(manifest.state_outputs, states, strict=True)
        ),
        manifest.residual,
    ]
    for rung in bundle.profile("ort-cpu").rungs:
        session = ort.InferenceSession(
            str(bundle.path / rung.graph), providers=["CPUExecutionProvider"]
        )
        for specs, found in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
            assert [(s.name, DTYPES[s.dtype], list(s.shape)) for s in specs] == [
                (value.name, value.type, value.shape) for value in found
            ]


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_the_manifest_describes_the_graphs(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{kind}_bundle")
    bundle = open_bundle(path, verify=True)
    assert_true_to_its_graphs(bundle)
    manifest = bundle.manifest
    card = json.loads(request.getfixturevalue(f"{kind}_weights").with_suffix(".json").read_text())
    assert manifest.name == kind
    assert manifest.task == card["model"]["task"]
    assert list(manifest.labels) == card["labels"]
    assert [list(colour) for colour in manifest.palette] == card["palette"]
    assert manifest.input.size == (card["input"]["height"], card["input"]["width"])
    assert list(manifest.input.mean) == card["input"]["mean"]
    assert manifest.provenance.name == card["provenance"]["name"]
    assert manifest.metrics == card["metrics"]
    assert manifest.solver.name == "fixed_point"
    assert [rung.evaluations for rung in bundle.profile("ort-cpu").rungs] == [1, 2, 4]
    on_disk = set(contents(path))
    assert on_disk == {*manifest.files, "manifest.json", *BESIDE}


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_the_verification_is_plausible(kind: str, request: pytest.FixtureRequest) -> None:
    report = open_bundle(request.getfixturevalue(f"{kind}_bundle")).manifest.verification
    assert (report.images, report.source) == (2, "test://")
    assert ort.__version__ in report.backend
    assert [rung.evaluations for rung in report.rungs] == [1, 2, 4]
    for rung in report.rungs:
        assert (rung.profile, rung.precision, rung.reference) == ("ort-cpu", "fp32", "torch")
        assert 0 < rung.state_max_abs < report.tolerances["fp32"].atol
        assert 0 < rung.state_rel < report.tolerances["fp32"].rtol
        assert rung.rounding == 0, "nothing was apart"
        assert rung.step_rel is None
        assert 0 <= rung.residual_max_rel < 1e-3
        assert report.tolerances["fp32"].min_agreement <= rung.answer_agreement <= 1
        assert 0 <= rung.solver_gap_agreement <= 1
    gaps = [rung.solver_gap_state for rung in report.rungs]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] > 100 * report.rungs[-1].state_max_abs, "two questions, two magnitudes"
    assert report.rungs[0].residual == pytest.approx(1.0), "||f(0) - 0|| / ||f(0)||"
    residuals = [rung.residual for rung in report.rungs]
    assert residuals == sorted(residuals, reverse=True)
    assert report.reference_residual < residuals[-1]


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_a_bundle_tells_nothing_of_the_machine_that_made_it(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(f"{kind}_bundle")
    traces = [
        "site-packages", "/home/", "/usr/", "/tmp/", ".py\"", str(Path.cwd()), str(path.parent),
        str(Path(torch.__file__).parent), socket.gethostname(),
    ]  # fmt: skip
    if (user := getpass.getuser()) != "root":
        traces.append(user)
    for name, raw in contents(path).items():
        raw = re.sub(rb"base64,[\w+/=]+", b"", raw)  # pictures, in whose letters all is found
        for trace in traces:
            assert trace.encode() not in raw, f"{trace!r} in {name}"


@two_images()
def test_the_same_export_gives_the_same_bytes_and_replaces_only_by_force(
    classifier_weights: Path, classifier_bundle: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "classifier.mdeq"
    shutil.copytree(segmenter_bundle, out)
    before = contents(out)
    with pytest.raises(BundleError, match=r"already exists; replace it with --force"):
        export_bundle(classifier_weights, out)
    assert contents(out) == before
    settings = ExportSettings(iterations=(4, 2, 1, 2), force=True)
    manifest = edge_mdeq.export(str(classifier_weights), str(out), settings)
    first, second = contents(classifier_bundle), contents(out)
    for name in OF_A_MOMENT:
        first.pop(name), second.pop(name)
    assert first == second
    assert names(tmp_path) == ["classifier.mdeq"]
    assert manifest == open_bundle(out).manifest


def test_another_size_another_solver_and_images_of_ones_own(
    segmenter_weights: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "my street"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), scene(index, 50, 70))
    (folder / "notes.txt").write_text("not an image")
    told: list[str] = []
    manifest = export_bundle(
        segmenter_weights,
        tmp_path / "wide.mdeq",
        ExportSettings((3,), "anderson", {"m": 2}, size=(32, 128), images=folder),
        told.append,
    )
    bundle = open_bundle(tmp_path / "wide.mdeq", verify=True)
    assert bundle.manifest == manifest
    assert_true_to_its_graphs(bundle)
    assert manifest.input.size == (32, 128)
    assert manifest.metrics == {}, "the card's are of another size"
    assert manifest.states[0].shape == (1, 8, 8, 32)
    assert (manifest.solver.name, manifest.solver.settings) == ("anderson", {"m": 2})
    assert (manifest.verification.images, manifest.verification.source) == (3, "my street")
    assert any("3 evaluations" in message for message in told)
    with edge_mdeq.load(tmp_path / "wide.mdeq") as model:
        assert model(np.zeros((40, 50, 3), np.uint8)).output.shape == (40, 50)


@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer's, as it is imported
@two_images()
def test_broken_graphs_do_not_pass_the_gate(
    classifier_weights: Path,
    segmenter_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pass that is one percent off in one gain: exit code 1, and the old bundle is intact."""
    from edge_mdeq.cli import main

    honest = LowerGroupNorm.call

    def careless(self: LowerGroupNorm, graph: ir.Graph) -> bool:
        modified = honest(self, graph)
        for name, value in graph.initializers.items():
            if name.endswith("_chw"):
                assert value.const_value is not None
                value.const_value = ir.tensor(1.01 * value.const_value.numpy(), name=name)
                break
        return modified

    monkeypatch.setattr(LowerGroupNorm, "call", careless)
    out = tmp_path / "old.mdeq"
    shutil.copytree(segmenter_bundle, out)
    arguments = ["export", str(classifier_weights), "-o", str(out), "--iterations", "1", "-q"]
    monkeypatch.setattr("sys.argv", ["edge-mdeq", *arguments, "--force"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    captured = capsys.readouterr()
    assert "solve-k1 in fp32 differs from torch" in captured.err
    assert "--rtol" in captured.err
    assert "wrote" not in captured.out
    assert names(tmp_path) == ["old.mdeq"]
    assert contents(out) == contents(segmenter_bundle)


@pytest.mark.parametrize(
    ("bars", "found", "message"),
    [
        ({"rtol": 1e-12}, {}, r"solve-k1 in fp32 differs .* relative; allowed is 1e-12 \(--rtol\)"),
        ({"atol": 1e-12}, {}, r"solve-k1 in fp32 differs .* allowed is 1e-12 \(--atol\)"),
        ({"min_agreement": 1.0}, {"answer_agreement": 0.9999}, r"k4 .* torch on 99\.990% of the"),
        ({}, {"state_rel": float("nan")}, "solve-k4 in fp32 differs from torch by nan"),
        ({}, {"state_max_abs": float("nan")}, "solve-k4 in fp32 differs from torch by nan"),
        ({}, {"answer_agreement": float("nan")}, "solve-k4 in fp32 agrees with torch on nan%"),
        ({}, {"outputs": {"a": 0.0, "b": 2e-3}}, r"by 2\.00e-03 in its output 'b', .* \(--atol\)"),
        ({}, {"outputs": {"b": float("nan")}}, "by nan in its output 'b'"),
        ({}, {"answer_agreement": 0.9}, r"90\.000% of the answers, required is 99\.9%"),
        ({}, {"step_rel": 2e-4}, r"by 2\.00e-04 in a single step, relative"),
        ({}, {"step_rel": float("nan")}, "by nan in a single step"),
        ({}, {"step_rel": 1e-6, "state_rel": float("nan")}, "by nan in its states, relative"),
    ],
)
def test_the_gate_has_three_bars_and_nan_passes_none(
    segmenter_bundle: Path, bars: dict[str, float], found: dict[str, object], message: str
) -> None:
    report = open_bundle(segmenter_bundle).manifest.verification
    require_parity(report)
    rungs = (*report.rungs[:-1], replace(report.rungs[-1], **found))  # type: ignore[arg-type]
    tolerances = {"fp32": replace(report.tolerances["fp32"], **bars)}
    with pytest.raises(ParityError, match=message):
        require_parity(replace(report, rungs=rungs, tolerances=tolerances))


@pytest.mark.parametrize("value", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["atol", "rtol", "min_agreement"])
def test_senseless_tolerances_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value:g}, must be "):
        tolerances_with(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("rtol", 1.0), ("min_agreement", 1.5)])
def test_tolerances_that_all_or_none_would_meet_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value:g}, must be "):
        Tolerance(**{name: value})


def test_the_strictest_and_the_loosest_tolerances_are_taken() -> None:
    for found in (tolerances_with(atol=0, rtol=0, min_agreement=1), tolerances_with(atol=1e6)):
        assert found.keys() == TOLERANCES.keys()
    loose = tolerances_with(rtol=0.5, min_agreement=0.0)["fp16"]
    assert loose == replace(TOLERANCES["fp16"], rtol=0.5, min_agreement=0.0)


def test_a_manifest_with_a_senseless_tolerance_is_refused(
    segmenter_bundle: Path, own_copy: Copy
) -> None:
    path = own_copy(segmenter_bundle)
    raw = json.loads((path / "manifest.json").read_text())
    raw["verification"]["tolerances"]["fp32"]["rtol"] = -1.0
    (path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"rtol is -1, must be .*verification\.tolerances"):
        open_bundle(path)


def test_a_solve_too_sensitive_to_compare_is_judged_by_its_steps(segmenter_bundle: Path) -> None:
    report = open_bundle(segmenter_bundle).manifest.verification
    apart = {"state_rel": 0.1, "state_max_abs": 1.0, "answer_agreement": 0.9, "rounding": 0.1}
    rung = replace(report.rungs[-1], **apart, step_rel=1e-6)  # type: ignore[arg-type]
    require_parity(replace(report, rungs=(rung,)))
