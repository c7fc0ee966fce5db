"""Bundles with int8: what is in them, what they answer, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from quick_exports import two_images

import edge_mdeq
from edge_mdeq.bundle import Manifest, open_bundle
from edge_mdeq.bundle.precision import precision_of, select
from edge_mdeq.errors import ConfigError, DataError, ParityError
from mdeq_export import ExportSettings, export_bundle, unroll_bundle
from mdeq_export.images import scene
from mdeq_export.quantize.adding import SUMMARY

Copy = Callable[[Path], Path]
INT8 = ExportSettings(iterations=(1, 2, 4), int8=True)


@pytest.fixture(scope="module")
def bundle(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmenter's, with int8 for two kinds of runtime."""
    out = tmp_path_factory.mktemp("int8") / "segmenter.mdeq"
    settings = ExportSettings(iterations=(1, 2, 4), int8=True, targets=("ort-cpu", "tensorrt-rtx"))
    with two_images():
        export_bundle(segmenter_weights, out, settings)
    return out


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle, verify=True).manifest


def test_int8_and_refined_rungs_lie_beside_those_in_full_precision(manifest: Manifest) -> None:
    for profile in manifest.profiles.values():
        steps = [
            [(step.precision, step.evaluations) for step in rung.steps] for rung in profile.rungs
        ]
        assert steps == [
            [("fp32", 1)], [("fp32", 2)], [("fp32", 4)],
            [("int8", 1)], [("int8", 2)], [("int8", 4)],
            [("int8", 1), ("fp32", 1)], [("int8", 3), ("fp32", 1)],
        ]  # fmt: skip
        assert [parts.precision for parts in profile.parts] == ["fp32", "int8"]
    names = {Path(rung.graph).name for rung in manifest.profiles["ort-cpu"].rungs}
    assert {"solve-k4.onnx", "solve-int8-k4.onnx", "solve-int8-k3-fp32-k1.onnx"} <= names
    assert manifest.precision == "refined"


def test_a_plan_knows_that_every_evaluation_packs_its_kernels(manifest: Manifest) -> None:
    costs = manifest.profiles["ort-cpu"].costs
    packed = {k: costs[f"graphs/ort-cpu/solve-int8-k{k}.onnx"].packed for k in (1, 2, 4)}
    once = costs["graphs/ort-cpu/advance-int8-k1.onnx"].packed
    assert packed[2] - packed[1] == once > 0
    assert packed[4] - packed[2] == 2 * once
    assert costs["graphs/ort-cpu/solve-k4.onnx"].packed == 0
    mixed = costs["graphs/ort-cpu/solve-int8-k3-fp32-k1.onnx"]
    assert mixed.packed == packed[2] + once


def test_weights_in_int8_have_a_file_of_their_own(bundle: Path, manifest: Manifest) -> None:
    for profile in manifest.profiles.values():
        single, integer = profile.weights
        assert (single.precision, integer.precision) == ("fp32", "int8")
        # tiny layers: the scales of every channel take as much as their kernels
        assert integer.bytes < 0.5 * single.bytes
        assert (bundle / integer.file).stat().st_size == integer.bytes


def test_a_refined_solve_ends_where_full_precision_does(manifest: Manifest) -> None:
    errors = {
        (rung.precision, rung.evaluations): rung.solver_gap_state
        for rung in manifest.verification.rungs
        if rung.profile == "ort-cpu"
    }
    for count in (2, 4):
        assert errors["refined", count] <= max(1.1 * errors["fp32", count], 0.01)
        assert errors["refined", count] < errors["int8", count] or errors["int8", count] < 0.01


def test_the_summary_says_what_every_layer_cost(bundle: Path, manifest: Manifest) -> None:
    assert SUMMARY in manifest.files
    summary = msgspec.json.decode((bundle / SUMMARY).read_bytes())
    assert summary["ort-cpu"]["scheme"] == "asymmetric uint8"
    assert summary["tensorrt-rtx"]["scheme"] == "symmetric int8"
    for found in summary.values():
        errors = [layer["error"] for layer in found["layers"]]
        assert errors == sorted(errors, reverse=True)
        assert all(0 <= error < 0.1 for error in errors)
        assert any(layer["integer"] for layer in found["layers"])


def test_what_was_calibrated_on_generated_pictures_says_so(manifest: Manifest) -> None:
    assert any("calibrated on generated pictures" in warning for warning in manifest.warnings)


@pytest.mark.parametrize("precision", ["fp32", "int8", "refined"])
def test_a_session_answers_in_the_precision_it_is_asked_for(bundle: Path, precision: str) -> None:
    from mdeq_runtime import FixedIterations, SessionSettings

    settings = SessionSettings(FixedIterations(4), precision=precision)
    with edge_mdeq.load(bundle, settings=settings) as model, model.session() as session:
        result = session(scene(3, 64, 96))
        (loaded,) = model.backend.sessions  # type: ignore[attr-defined]
        rung = next(r for r in model.bundle.profile("ort-cpu").rungs if r.graph == loaded)
    assert precision_of(rung) == precision
    assert result.iterations == 4
    assert result.residual < 0.5


def test_parts_in_int8_give_what_its_graphs_give(bundle: Path) -> None:
    from mdeq_runtime import FixedIterations, SessionSettings, UntilTolerance

    image = scene(3, 64, 96)
    asked = (FixedIterations(4), UntilTolerance(1e-9, max_iterations=4))
    found = []
    for policy in asked:
        settings = SessionSettings(policy, precision="int8")
        with edge_mdeq.load(bundle, settings=settings) as model:
            found.append(model(image))
    assert found[0].residual == pytest.approx(found[1].residual, rel=1e-3)
    assert (found[0].output == found[1].output).mean() > 0.999


def test_fewer_evaluations_than_a_refined_end_has_are_in_full_precision(
    manifest: Manifest,
) -> None:
    rungs = select(manifest.profiles["ort-cpu"], "refined").rungs
    assert [(precision_of(r), r.evaluations) for r in rungs] == [
        ("fp32", 1), ("refined", 2), ("refined", 4),
    ]  # fmt: skip


def test_a_memory_limit_knows_the_int8_graphs(bundle: Path, manifest: Manifest) -> None:
    costs = manifest.profiles["ort-cpu"].costs
    assert set(manifest.profiles["ort-cpu"].graphs) <= set(costs)
    place = "graphs/ort-cpu"
    assert costs[f"{place}/solve-int8-k4.onnx"].weights < costs[f"{place}/solve-k4.onnx"].weights


@two_images()
def test_further_rungs_come_in_every_precision(bundle: Path, own_copy: Copy) -> None:
    path = own_copy(bundle)
    manifest = unroll_bundle(path, [3])
    added = [
        (rung.precision, rung.evaluations)
        for rung in manifest.verification.rungs
        if rung.profile == "ort-cpu" and rung.evaluations == 3
    ]
    assert added == [("fp32", 3), ("int8", 3), ("refined", 3)]
    assert open_bundle(path, verify=True).manifest == manifest


@two_images()
def test_a_classifiers_readout_is_integer_too(classifier_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "classifier.mdeq"
    manifest = export_bundle(
        classifier_weights, out, ExportSettings(iterations=(2,), int8=True, refine=0)
    )
    assert manifest.precision == "int8"
    assert {precision_of(rung) for rung in manifest.profiles["ort-cpu"].rungs} == {"fp32", "int8"}
    integer = manifest.profiles["ort-cpu"].parts[1]
    assert integer.readout.endswith("readout-int8.onnx")
    with edge_mdeq.load(out) as model:
        assert model(scene(0, 32, 32)).output.sum() == pytest.approx(1, abs=1e-4)


def folder_of(path: Path, images: list[np.ndarray]) -> Path:
    path.mkdir()
    for k, image in enumerate(images):
        cv2.imwrite(str(path / f"{k}.png"), image)
    return path


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([scene(k, 64, 96) for k in range(3)], "at least 4"),
        ([scene(1, 64, 96)] * 6, "are the same"),
        ([np.full((64, 96, 3), k * 30, np.uint8) for k in range(6)], "of one colour"),
        ([scene(k, 12, 16) for k in range(6)], "12 x 16 pixels.*smaller --imgsz"),
    ],
)
def test_calibration_images_that_will_not_do(
    segmenter_weights: Path, tmp_path: Path, images: list[np.ndarray], words: str
) -> None:
    data = folder_of(tmp_path / "data", images)
    with pytest.raises(DataError, match=words):
        export_bundle(
            segmenter_weights,
            tmp_path / "new.mdeq",
            ExportSettings(iterations=(2,), int8=True, images=data),
        )
    assert not (tmp_path / "new.mdeq").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"half": True}, "half and int8 exclude each other"),
        ({"targets": ("tensorrt-8",)}, "tensorrt-8 has no int8"),
        ({"batch": 2}, "--dynamic-batch"),
        ({"refine": -1}, "refine is -1"),
        ({"refine": 4}, "none would be left for int8"),
    ],
)
def test_what_does_not_go_together_with_int8(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExportSettings(iterations=(1, 4), int8=True, **settings)  # type: ignore[arg-type]


def test_labelled_data_without_int8_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --int8"):
        ExportSettings(score=lambda bundle, evaluations: {})


@two_images()
def test_a_gate_that_fails_leaves_the_old_bundle(
    segmenter_weights: Path, segmenter_bundle: Path, own_copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_copy(segmenter_bundle)
    before = (path / "manifest.json").read_bytes()
    monkeypatch.setattr("mdeq_export.quantize.gate.REFINED_RATIO", 0.5)
    monkeypatch.setattr("mdeq_export.quantize.gate.NEAR", 0.0)
    with pytest.raises(ParityError, match=r"--refine 2, or leave out --int8"):
        export_bundle(
            segmenter_weights, path, ExportSettings(iterations=(4,), int8=True, force=True)
        )
    assert (path / "manifest.json").read_bytes() == before
    open_bundle(path, verify=True)


@two_images()
def test_a_metric_that_falls_too_far_leaves_the_old_bundle(
    classifier_weights: Path, classifier_bundle: Path, own_copy: Copy
) -> None:
    path = own_copy(classifier_bundle)
    before = (path / "manifest.json").read_bytes()

    def score(bundle: Path, evaluations: int) -> dict[str, float]:
        assert open_bundle(bundle).manifest.precision == "int8"
        return {"fp32": 0.8, "int8": 0.78}

    settings = ExportSettings(iterations=(2,), int8=True, refine=0, score=score, force=True)
    with pytest.raises(ParityError, match=r"0\.7800 in int8 and 0\.8000 in fp32"):
        export_bundle(classifier_weights, path, settings)
    assert (path / "manifest.json").read_bytes() == before
