"""``edge-mdeq val`` as a user meets it, where there is no torch."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data import VOID, text, write_camvid, write_folder

import edge_mdeq
from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.measurements import read_measurements
from mdeq_export.images import scene

ON_A_DEVICE = """
import sys
from collections.abc import Callable
for name in ("torch", "torchmetrics", "onnx", "onnx_ir", "kornia", "safetensors", "mdeq_export"):
    sys.modules[name] = None  # as if it were not installed
from edge_mdeq.cli import main
main()
"""


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE, "val", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    return write_camvid(tmp_path / "camvid")


def test_the_tables_and_the_next_command(segmenter_bundle: Path, camvid: Path) -> None:
    done = call(
        segmenter_bundle, "--data", camvid, "--ignore", VOID, "255", "--iterations", "1", "4",
        "--warm",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = edge_mdeq.val(segmenter_bundle, camvid, ignore=[VOID], iterations=[1, 4], warm=True)
    for score in report.scores:
        cells = [score.start, str(score.evaluations), score.steps, f"{score.value:.4f}"]
        rows = [line.split("│")[1:5] for line in done.stdout.splitlines()]
        assert cells in [[cell.strip() for cell in row] for row in rows]
    assert "IoU by class, cold starts" in done.stdout
    assert "IoU by class, warm starts" in done.stdout
    *_, summary, step = done.stdout.splitlines()
    assert summary.startswith("2 images of ")
    assert step == f"next: edge-mdeq run {segmenter_bundle} VIDEO annotated.mp4"


def test_json_is_the_report(classifier_bundle: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "folder", ("ant", "bee", "cat", "dog", "eel"))
    done = call(classifier_bundle, "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = edge_mdeq.val(classifier_bundle, data)
    assert found["metric"] == "accuracy"
    assert found["counts"] == list(expected.counts)
    assert [score["value"] for score in found["scores"]] == [s.value for s in expected.scores]
    assert [score["evaluations"] for score in found["scores"]] == [1, 2, 4]


def test_of_many_classes_the_worst_are_shown() -> None:
    from edge_mdeq.cli.val import MOST_CLASSES, classes_table
    from mdeq_runtime.val import RungScore, ValReport

    many = 3 * MOST_CLASSES
    per_class = tuple(None if k == 5 else 1 - k / many for k in range(many))
    score = RungScore("cold", 4, "4 fp32", 0.5, 0.5, per_class, 0.1, None)
    labels = tuple(f"kind {k}" for k in range(many))
    report = ValReport("x", "val", "accuracy", many, labels, (1,) * many, (score,), 1.0)
    table = classes_table(report, "cold")
    names = list(table.columns[0].cells)
    assert names == [f"kind {k}" for k in range(many - 1, many - 1 - MOST_CLASSES, -1)]
    assert f"the worst {MOST_CLASSES} of {many - 1}" in str(table.title)


def test_bad_input_is_one_message_and_exit_code_1(segmenter_bundle: Path, camvid: Path) -> None:
    text(camvid / "val" / "001.png")
    done = call(segmenter_bundle, "--data", camvid, "--ignore", VOID)
    assert done.returncode == 1
    assert done.stdout == ""
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "val/001.png cannot be decoded as an image" in error


def test_the_figures_go_into_the_bundle_if_asked_for(
    segmenter_bundle: Path, camvid: Path, own_copy: Callable[[Path], Path]
) -> None:
    bundle = own_copy(segmenter_bundle)
    asked = (bundle, "--data", camvid, "--ignore", VOID, "255", "--warm", "-q")
    assert call(*asked).returncode == 0
    before = read_measurements(bundle)
    assert "val" not in before
    done = call(*asked, "--report")
    assert done.returncode == 0, done.stderr
    assert "the report stays as it is" in done.stderr, "there is no exporter here"
    found = read_measurements(bundle)
    assert found.items() > before.items()
    report = edge_mdeq.val(bundle, camvid, ignore=[VOID], warm=True)
    for score in report.scores:
        kept = found["val"][score.start][str(score.evaluations)]
        assert kept == pytest.approx(score.value, abs=1e-4)
    open_bundle(bundle, verify=True)
    command = [sys.executable, "-m", "edge_mdeq.cli", "val", *map(str, asked), "--report"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert "Task metric" in (bundle / "report.html").read_text()


@pytest.mark.parametrize("source", ["test://", "street"])
def test_the_report_shows_photographs_where_it_did_before(
    segmenter_bundle: Path, camvid: Path, own_copy: Callable[[Path], Path], source: str
) -> None:
    """A bundle that was verified on generated pictures may be given to anyone, and stays so."""
    bundle = own_copy(segmenter_bundle)
    manifest = open_bundle(bundle).manifest
    verified = replace(manifest.verification, source=source)
    (bundle / "manifest.json").write_bytes(
        encode_manifest(replace(manifest, verification=verified))
    )
    arguments = [bundle, "--data", camvid, "--ignore", VOID, "--report", "-q"]
    command = [sys.executable, "-m", "edge_mdeq.cli", "val", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    page = (bundle / "report.html").read_text()
    shown = re.findall(r'base64,([^"]+)" alt="input"', page)
    assert len(shown) == 2
    means = [
        cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), 1).mean() for code in shown
    ]
    scenes = [scene(k, 64, 96).mean() for k in range(2)]
    photographs = [cv2.imread(str(camvid / "val" / f"{k:03}.png")).mean() for k in range(2)]
    assert means == pytest.approx(scenes if source == "test://" else photographs, abs=2)
    assert means != pytest.approx(photographs if source == "test://" else scenes, abs=2)
    assert f"Pictures of {'test://' if source == 'test://' else 'val'}, at" in page
