"""Further rungs for a bundle that exists, where there is no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from quick_exports import two_images
from tiny_data import write_image

import edge_mdeq
from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.errors import BundleError, ConfigError, ParityError
from mdeq_export import ExportSettings, export_bundle, unroll_bundle
from mdeq_export.compose import Pieces, solve_model
from mdeq_export.images import scene

RENEWED = {"manifest.json", "measurements.json", "report.html", "report.json"}
Copy = Callable[[Path], Path]


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@two_images()
def test_it_gives_the_graphs_that_an_export_would_have_given(
    segmenter_weights: Path, segmenter_bundle: Path, own_copy: Copy, tmp_path: Path
) -> None:
    before, path = contents(segmenter_bundle), own_copy(segmenter_bundle)
    manifest = unroll_bundle(path, [3, 6])
    bundle = open_bundle(path, verify=True)
    assert bundle.manifest == manifest
    after = contents(path)
    kept = {name: data for name, data in before.items() if name not in RENEWED}
    assert kept == {name: after[name] for name in kept}
    fresh = tmp_path / "fresh.mdeq"
    export_bundle(segmenter_weights, fresh, ExportSettings(iterations=(1, 2, 3, 4, 6)))
    whole = contents(fresh)
    assert after.keys() == whole.keys()
    assert {n for n in whole if after[n] != whole[n]} == RENEWED
    assert manifest.profiles == open_bundle(fresh).manifest.profiles
    found = {rung.evaluations: rung for rung in manifest.verification.rungs}
    assert set(found) == {1, 2, 3, 4, 6}
    for count in (3, 6):
        assert found[count].reference == "parts"
        assert found[count].state_rel < 1e-5
        assert found[count].answer_agreement > 0.999
        assert 0 < found[count].solver_gap_state < found[1].solver_gap_state
    assert b"<td>6</td>" in after["report.html"], "the report knows the new rungs"
    with edge_mdeq.load(path) as model:
        assert model(scene(0, 40, 50)).output.shape == (40, 50)


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings((2,), "anderson", {"m": 3}),
        ExportSettings((2,), "broyden", {"m": 2}),
        ExportSettings((2,), "fixed_point", {"tau": 0.7}, best=True),
    ],
    ids=["anderson", "broyden", "best"],
)
@two_images()
def test_the_history_and_the_best_iterate_come_along(
    classifier_weights: Path, tmp_path: Path, settings: ExportSettings
) -> None:
    path, whole = tmp_path / "a.mdeq", tmp_path / "b.mdeq"
    export_bundle(classifier_weights, path, settings)
    export_bundle(classifier_weights, whole, replace(settings, iterations=(2, 7)))
    unroll_bundle(path, [7])
    a, b = contents(path), contents(whole)
    assert {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)} == RENEWED


def test_rungs_stay_in_order_and_are_measured_on_as_many_images(
    classifier_bundle: Path, own_copy: Copy
) -> None:
    path = own_copy(classifier_bundle)
    report = unroll_bundle(path, [3]).verification
    assert [rung.evaluations for rung in report.rungs] == [1, 2, 3, 4]
    gaps = [rung.solver_gap_state for rung in report.rungs]
    assert gaps == sorted(gaps, reverse=True), "of the same images"


@two_images()
def test_an_open_batch_stays_open(classifier_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mdeq"
    export_bundle(classifier_weights, path, ExportSettings((1,), dynamic_batch=True))
    manifest = unroll_bundle(path, [2])
    assert manifest.input.tensor.shape[0] == -1
    (one, two) = manifest.verification.rungs
    assert (one.evaluations, two.evaluations) == (1, 2)
    assert 0 < two.solver_gap_state < one.solver_gap_state


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnxscript", "safetensors", "kornia", "cv2"):
    sys.modules[name] = None  # as if it were not installed
from edge_mdeq.cli import main
main()
"""


def test_the_command_needs_no_torch(classifier_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(classifier_bundle)
    command = [sys.executable, "-c", WITHOUT_TORCH, "unroll", str(path), "--iterations", "3", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "rungs of 1, 2, 3, 4, 5 evaluations" in " ".join(done.stdout.split())
    assert "next: edge-mdeq inspect" in done.stdout
    rungs = open_bundle(path, verify=True).profile("ort-cpu").rungs
    assert [rung.evaluations for rung in rungs] == [1, 2, 3, 4, 5]


def test_what_is_there_already_is_left_alone(classifier_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(classifier_bundle)
    before = contents(path)
    unroll_bundle(path, [2, 4])
    assert contents(path) == before


def test_bad_counts_are_refused(classifier_bundle: Path) -> None:
    for counts, message in (([], "empty"), ([0], "0 is not in"), ([257], "257 is not in")):
        with pytest.raises(ConfigError, match=message):
            unroll_bundle(classifier_bundle, counts)


def test_a_damaged_bundle_is_refused_and_stays(classifier_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(classifier_bundle)
    piece = path / "graphs/ort-cpu/piece-c.onnx"
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    before = contents(path)
    with pytest.raises(BundleError, match=r"piece-c\.onnx does not have the SHA-256"):
        unroll_bundle(path, [3])
    assert contents(path) == before


def test_a_bundle_without_pieces_is_refused(classifier_bundle: Path, own_copy: Copy) -> None:
    path = own_copy(classifier_bundle)
    manifest = open_bundle(path).manifest
    profiles = {name: replace(p, parts=()) for name, p in manifest.profiles.items()}
    (path / "manifest.json").write_bytes(encode_manifest(replace(manifest, profiles=profiles)))
    with pytest.raises(BundleError, match="from its weights"):
        unroll_bundle(path, [3])


def test_graphs_that_are_not_their_pieces_do_not_pass(
    classifier_bundle: Path, own_copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One evaluation too few, as if the composition had forgotten it."""

    def careless(pieces: Pieces, evaluations: int) -> ir.Model:
        return solve_model(pieces, evaluations - 1)

    monkeypatch.setattr("mdeq_export.graphs.solve_model", careless)
    path = own_copy(classifier_bundle)
    before = contents(path)
    with pytest.raises(ParityError, match="solve-k3 in fp32 differs from parts"):
        unroll_bundle(path, [3])
    assert contents(path) == before


def test_the_images_of_one_s_own_are_used(
    classifier_bundle: Path, own_copy: Copy, tmp_path: Path
) -> None:
    write_image(tmp_path / "my pictures" / "a.png", scene(7, 40, 40))
    path = own_copy(classifier_bundle)
    told: list[str] = []
    unroll_bundle(path, [3], tmp_path / "my pictures", told.append)
    assert "Pictures of my pictures, at" in (path / "report.html").read_text()
    assert "composing solve for ort-cpu, 3 evaluations" in told
