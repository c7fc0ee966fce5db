"""Bundles of every schema that was released load, and answer as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from make_bundle import answers

from edge_mdeq.bundle import SCHEMA, open_bundle
from edge_mdeq.bundle.decoding import version_of
from edge_mdeq.errors import BundleError
from edge_mdeq.version import __version__

HERE = Path(__file__).parent
KEPT = [HERE / f"schema-{schema}.mdeq" for schema in range(1, SCHEMA + 1)]


@pytest.fixture(params=KEPT, ids=lambda path: path.stem)
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if not path.is_dir():
        pytest.skip(f"{path.name} is not part of the sdist")
    return path


def test_it_loads_and_answers_as_it_did(bundle: Path) -> None:
    manifest = open_bundle(bundle, verify=True).manifest
    assert manifest.schema == int(bundle.stem.removeprefix("schema-"))
    kept = json.loads(bundle.with_suffix(".json").read_text())
    for found, wanted in zip(answers(bundle), kept, strict=True):
        assert found["count"] == wanted["count"]
        assert np.allclose(found["scores"], wanted["scores"], atol=2e-4)  # type: ignore[arg-type]
        assert found["residual"] == pytest.approx(wanted["residual"], rel=1e-3)


def test_what_is_kept_tells_answers_apart(bundle: Path) -> None:
    """A bundle that answers the same to everything would prove nothing."""
    first, second = json.loads(bundle.with_suffix(".json").read_text())
    assert not np.allclose(first["scores"], second["scores"], atol=2e-4)
    assert first["residual"] > second["residual"] * 1.01


def test_every_schema_has_its_bundle() -> None:
    kept = sorted(HERE.glob("schema-*.mdeq"))
    if not kept:
        pytest.skip("the bundles are not part of the sdist")
    assert kept == sorted(KEPT)


def test_what_was_signed_and_kept_still_holds(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from edge_mdeq.bundle.reader import read_manifest
    from edge_mdeq.bundle.signature import make_key, read_private_key, sign_manifest

    public, _ = make_key(tmp_path / "key.pem")
    copy = Path(shutil.copytree(bundle, tmp_path / "own.mdeq"))
    sign_manifest(copy, read_manifest(copy), read_private_key(tmp_path / "key.pem"))
    assert open_bundle(copy, require_signature=public).manifest == open_bundle(bundle).manifest


def test_a_newer_one_is_refused_with_the_version_to_install(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "own.mdeq"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"schema": SCHEMA + 1, "requires": "41.2", "something": "new"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"schema \d+, .*pip install 'edge-mdeq>=41\.2'"):
        open_bundle(copy)


def test_what_this_version_writes_it_reads() -> None:
    from edge_mdeq.bundle.manifest import REQUIRES

    assert version_of(REQUIRES) <= version_of(__version__)
    assert version_of("0.10") > version_of("0.9.3")
    assert version_of("1.0.0") == version_of("1")
