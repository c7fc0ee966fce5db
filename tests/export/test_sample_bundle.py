"""The committed bundle is what an export of the sample weights gives today."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edge_mdeq
from edge_mdeq.bundle import Bundle, open_bundle
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.images import scene

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples/bundles/camvid-nano.mdeq"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("fresh") / "camvid-nano.mdeq"
    export_bundle(ROOT / "samples/models/camvid-nano", out, ExportSettings((1, 2, 4, 8)))
    return open_bundle(out, verify=True)


@pytest.fixture(scope="module")
def committed() -> Bundle:
    return open_bundle(SAMPLE, verify=True)


def test_it_equals_a_fresh_export_in_numbers(committed: Bundle, fresh: Bundle) -> None:
    old = committed.manifest
    aside = {"verification": old.verification, "tools": old.tools, "created_by": old.created_by}
    files = {name: fresh.manifest.files[name] for name in old.files}
    assert replace(fresh.manifest, **aside, files=files) == replace(old, files=files)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    states = {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32)
        for spec in fresh.manifest.states
    }
    feeds = {"image": scene(11, 192, 256)[None], **states}
    for rung in fresh.profile("ort-cpu").rungs:
        found, expected = (
            ort.InferenceSession(
                str(bundle.path / rung.graph), providers=["CPUExecutionProvider"]
            ).run(None, feeds)
            for bundle in (committed, fresh)
        )
        for a, b in zip(found, expected, strict=True):
            if a.dtype == np.uint8:
                assert (a == b).mean() > 0.9999
            else:
                np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert fresh.manifest.verification.images == old.verification.images == 8
    pairs = zip(old.verification.rungs, fresh.manifest.verification.rungs, strict=True)
    for a, b in pairs:
        assert a.residual == pytest.approx(b.residual, rel=1e-3)
        assert a.solver_gap_agreement == pytest.approx(b.solver_gap_agreement, abs=1e-3)


def test_it_equals_a_fresh_export_in_bytes_where_the_tools_do(
    committed: Bundle, fresh: Bundle
) -> None:
    if committed.manifest.tools != fresh.manifest.tools:
        pytest.skip(f"made with {committed.manifest.tools}, here are {fresh.manifest.tools}")
    assert committed.manifest.files == fresh.manifest.files


def test_it_shows_nobody_s_pictures(committed: Bundle) -> None:
    assert committed.manifest.verification.source == "test://"


RUN = """
import sys
for name in ("torch", "onnx", "onnx_ir", "safetensors", "mdeq_export"):
    sys.modules[name] = None  # as if it were not installed
import numpy, edge_mdeq
with edge_mdeq.load(sys.argv[1]) as model:
    print(model(numpy.full((90, 120, 3), 128, numpy.uint8)).output.shape)
"""


def test_it_runs_where_there_is_neither_torch_nor_onnx() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(SAMPLE)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(90, 120)"


def test_it_is_the_sample_model(committed: Bundle) -> None:
    with edge_mdeq.load(committed.path) as model:
        assert model.labels == open_bundle(SAMPLE).manifest.labels
        assert len(model.labels) == 11
    assert "non-commercial" in committed.manifest.provenance.licence
