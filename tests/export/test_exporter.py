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
from safetensors.torch import load_file, save_file
from tiny_data import cut, empty, text, write_camvid, write_image

import edge_mdeq
from edge_mdeq.bundle import Bundle, TensorSpec, Tolerance, open_bundle
from edge_mdeq.errors import (
    BundleError,
    ConfigError,
    DataError,
    EdgeMdeqError,
    ParityError,
    WeightsError,
)
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.convergence import Goal
from mdeq_export.images import scene, verification_images
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


# Refused before anything is traced


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("traced a model that should have been refused")

    monkeypatch.setattr("mdeq_export.exporter.trace_pieces", refuse)


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": (60, 96)}, ConfigError, "height 60 .* nearest sizes are 48 and 64"),
        ({"size": (64, 100)}, ConfigError, "width 100 .* nearest sizes are 96 and 112"),
        ({"size": (0, 96)}, ConfigError, "height|size"),
        ({"solver": "andersen"}, ConfigError, "did you mean 'anderson'"),
        ({"targets": ("trt-8", "ort-cpu", "RTX")}, ConfigError, "'tensorrt-8'.*'tensorrt-rtx'"),
        ({"solver_settings": {"m": 3}}, ConfigError, "'fixed_point' does not take"),
        ({"solver_settings": {"tau": 0.0}}, ConfigError, "tau"),
        ({"images": Path("/nowhere/at/all")}, DataError, "/nowhere/at/all does not exist"),
        ({"images": Path(__file__)}, DataError, "is a file; give a folder of images"),
        ({"solver": "auot"}, ConfigError, r"unknown solver 'auot' \(did you mean 'auto'"),
        ({"goal": Goal(1e-2)}, ConfigError, "f_tol .* solver 'auto' is chosen by; with 'fixed_p"),
    ],
)
def test_senseless_settings_are_refused(
    segmenter_weights: Path,
    tmp_path: Path,
    settings: dict[str, object],
    error: type[EdgeMdeqError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        export_bundle(
            segmenter_weights,
            tmp_path / "x.mdeq",
            ExportSettings(**settings),  # type: ignore[arg-type]
        )
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_tracing")
def test_one_image_is_too_few_to_choose_a_solver_by(
    segmenter_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "street").mkdir()
    cv2.imwrite(str(tmp_path / "street" / "a.png"), scene(0, 64, 96))
    settings = ExportSettings(solver="auto", images=tmp_path / "street")
    with pytest.raises(DataError, match=r"street holds 1 image; .* at least 2, better 8"):
        export_bundle(segmenter_weights, tmp_path / "x.mdeq", settings)
    assert names(tmp_path) == ["street"]


@pytest.mark.parametrize("iterations", [(), (0,), (2, -1), (257,)])
def test_impossible_iterations_are_refused(iterations: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="iterations"):
        ExportSettings(iterations=iterations)


def truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle(weights: Path) -> None:
    torch.save({"a": torch.zeros(1)}, weights)


def spoil(weights: Path) -> None:
    tensors = load_file(weights)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_file(tensors, weights)


def widen(weights: Path) -> None:
    card = json.loads(weights.with_suffix(".json").read_text())
    card["model"]["channels"] = [8, 16, 32]
    weights.with_suffix(".json").write_text(json.dumps(card))


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "does not exist"),
        (truncate, "truncated"),
        (pickle, "not a readable safetensors"),
        (spoil, "NaN or infinity"),
        (widen, r"config says .*32"),
    ],
)
def test_bad_weights_are_refused(
    segmenter_weights: Path,
    own_copy: Copy,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    weights = own_copy(segmenter_weights)
    damage(weights)
    before = names(tmp_path)
    with pytest.raises(WeightsError, match=message):
        export_bundle(weights, tmp_path / "x.mdeq")
    assert names(tmp_path) == before


@pytest.mark.usefixtures("no_tracing")
def test_what_cannot_be_replaced_is_refused(segmenter_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.mdeq").mkdir()
    (tmp_path / "letters.mdeq" / "dear.txt").write_text("love")
    with pytest.raises(BundleError, match="not a bundle"):
        export_bundle(segmenter_weights, tmp_path / "letters.mdeq", ExportSettings(force=True))
    with pytest.raises(BundleError, match=r"must end in \.mdeq"):
        export_bundle(segmenter_weights, tmp_path / "bundle")
    assert names(tmp_path / "letters.mdeq") == ["dear.txt"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(DataError, match=r"holds no images .* nor do the folders in it"):
        verification_images(tmp_path, 8, 32, 32)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("a.png", text, r"a\.png cannot be decoded"),
        ("a.png", empty, r"a\.png cannot be decoded"),
        ("a.png", cut, r"a\.png is truncated"),
        ("a.jpg", cut, r"a\.jpg is truncated"),
        ("a.jpg", lambda path: (path.unlink(), path.mkdir()), r"cannot read .*a\.jpg: Is a dir"),
    ],
)
def test_an_image_that_cannot_be_read_whole_is_refused_by_name(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    for k in range(2):
        write_image(tmp_path / f"{k}.png", scene(k, 40, 40))
    write_image(tmp_path / name, scene(3, 40, 40))
    spoil(tmp_path / name)
    with pytest.raises(DataError, match=message):
        verification_images(tmp_path, 8, 32, 32)
    assert capfd.readouterr().err == "", "nor does a library speak"


def test_images_may_lie_in_a_folder_per_class(tmp_path: Path) -> None:
    for k, kind in enumerate(("bus", "car", "train")):
        for index in range(4):
            image = np.full((20, 20, 3), 50 * k, np.uint8)
            write_image(tmp_path / kind / f"{index}.png", image)
    images, source = verification_images(tmp_path, 3, 16, 16)
    assert source == tmp_path.name
    assert images[..., 0].mean(axis=(1, 2)).tolist() == [0, 50, 100], "some of each"


def test_of_a_dataset_a_part_must_be_named(tmp_path: Path) -> None:
    """Else masks would be taken for photographs."""
    data = write_camvid(tmp_path / "CamVid")
    with pytest.raises(DataError, match=r"CamVid holds no images itself; name .*CamVid/val or"):
        verification_images(data, 8, 32, 32)
    assert verification_images(data / "val", 8, 32, 32)[1] == "val"


def test_images_are_read_as_rgb_and_spread_over_the_folder(tmp_path: Path) -> None:
    for index in range(9):
        image = np.zeros((20, 20, 3), np.uint8)
        image[..., 2] = 10 * index  # red, in OpenCV's order
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    images, source = verification_images(tmp_path, 3, 16, 16)
    assert source == tmp_path.name
    assert images.shape == (3, 16, 16, 3)
    assert images[..., 0].mean(axis=(1, 2)).tolist() == [0, 40, 80]
    assert not images[..., 1:].any()


def test_generated_scenes_are_reproducible_and_differ() -> None:
    images, source = verification_images(None, 3, 32, 48)
    again, _ = verification_images(None, 3, 32, 48)
    assert source == "test://"
    assert np.array_equal(images, again)
    assert len({image.tobytes() for image in images}) == 3
    assert images.std() > 10
