"""Engines are kept beside what they depend on; what does not fit, or was altered, is not used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.bundle.reader import hash_file, read_manifest
from edge_mdeq.bundle.signature import make_key, read_private_key, sign_manifest
from edge_mdeq.errors import EngineError
from mdeq_runtime.device_key import key_path
from mdeq_runtime.tensorrt.engines import EngineStore, sign_engines
from mdeq_runtime.tensorrt.identity import Identity

HERE = Identity("Orin", "8.7", "36.4.3", "12.6", "540.4.0", "10.3.0", "tensorrt-10", "fp32")
GRAPH = "graphs/ort-cpu/solve-k1.onnx"


@pytest.fixture
def bundle(plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """One of its own, without engines, and a user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return open_bundle(Path(shutil.copytree(plain.path, tmp_path / "own.mdeq")))


def put(store: EngineStore, content: bytes = b"a plan") -> Path:
    path = store.path(GRAPH)
    path.write_bytes(content)
    store.record(GRAPH, path, {"workspace": 1}, {"seconds": 2.0})
    return path


def test_what_was_built_here_is_found(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    path = put(store)
    assert path == bundle.path / "engines" / HERE.fingerprint / "solve-k1.engine"
    assert store.find(GRAPH) == path
    assert path.read_bytes() == b"a plan"  # and nothing else: trtexec takes it as it is
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["identity"]["device"] == "Orin"
    assert record["measured"] == {"seconds": 2.0}
    bundle.verify()


def test_where_there_is_none_the_command_is_named(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    with pytest.raises(EngineError, match=f"solve-k1.onnx has no engine.*engine {bundle.path}"):
        store.find(GRAPH)


@pytest.mark.parametrize(
    ("graph", "options"),
    [
        (None, ""),
        ("graphs/ort-cpu/solve-k2.onnx", ""),
        ("graphs/ort-cpu/advance-k1.onnx", ""),
        (GRAPH, " --iterations 1"),
        ("graphs/ort-cpu/inject.onnx", ""),
    ],
)
def test_the_command_builds_what_is_missing(
    bundle: Bundle, tmp_path: Path, graph: str | None, options: str
) -> None:
    """As it is for the graphs of a run's default policy, which it builds by itself."""
    store = EngineStore(bundle, "tensorrt-10", HERE)
    assert store.command(graph) == f"edge-mdeq engine {bundle.path}{options}"
    cached = EngineStore(bundle, "tensorrt-10", HERE, tmp_path)
    assert cached.command(graph) == f"{store.command(graph)} --cache {tmp_path}"


def test_a_bundles_name_leads_nowhere_else(bundle: Bundle, tmp_path: Path) -> None:
    named = replace(bundle, manifest=replace(bundle.manifest, name="../../elsewhere"))
    store = EngineStore(named, "tensorrt-10", HERE, tmp_path / "shared")
    assert store.path(GRAPH).resolve().is_relative_to(tmp_path / "shared")


def test_another_devices_engine_is_not_used_and_each_difference_is_named(bundle: Bundle) -> None:
    put(EngineStore(bundle, "tensorrt-10", replace(HERE, device="Xavier", tensorrt="10.13.3")))
    with pytest.raises(EngineError) as caught:
        EngineStore(bundle, "tensorrt-10", HERE).find(GRAPH)
    assert "GPU Xavier, here Orin; TensorRT 10.13.3, here 10.3.0" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.write_bytes(b"a plaN"), "altered since it was built"),
        (lambda path: path.write_bytes(b"a pl"), "4 bytes instead of 6: cut short"),
        (lambda path: path.with_suffix(".json").unlink(), r"solve-k1.json cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "no record of an engine"),
        (lambda path: path.with_suffix(".json").write_bytes(b" " * 2**17), "larger than 65536"),
        (lambda path: path.with_suffix(".json").write_bytes(b"[" * 2**16), "no record"),
    ],
)
def test_a_spoilt_engine_is_not_used(
    bundle: Bundle, change: Callable[[Path], object], why: str
) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    change(put(store))
    assert not store.has(GRAPH)
    with pytest.raises(EngineError, match=why):
        store.find(GRAPH)
    put(store)
    assert store.has(GRAPH)


def test_an_engine_of_other_weights_is_not_used(bundle: Bundle) -> None:
    put(EngineStore(bundle, "tensorrt-10", HERE))
    manifest = bundle.path / "manifest.json"
    old = bundle.manifest.files[bundle.profile("tensorrt-10").weights[0].file].sha256
    manifest.write_text(manifest.read_text().replace(old, "0" * 64))
    with pytest.raises(EngineError, match="built from other weights"):
        EngineStore(open_bundle(bundle.path), "tensorrt-10", HERE).find(GRAPH)


def test_what_fits_is_found_beside_what_does_not(bundle: Bundle) -> None:
    put(EngineStore(bundle, "tensorrt-10", replace(HERE, driver="535.1")))
    path = put(EngineStore(bundle, "tensorrt-10", HERE))
    assert EngineStore(bundle, "tensorrt-10", HERE).find(GRAPH) == path


def test_a_bundle_that_cannot_be_written_to_has_its_engines_in_the_users_cache(
    bundle: Bundle, tmp_path: Path
) -> None:
    (bundle.path / "engines").write_text("in the way, as a read-only medium is")
    store = EngineStore(bundle, "tensorrt-10", HERE)
    path = put(store)
    assert path.is_relative_to(tmp_path / "cache" / "edge-mdeq" / "engines")
    assert store.find(GRAPH) == path


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every folder is writable")
def test_so_it_is_where_permissions_forbid_it(bundle: Bundle, tmp_path: Path) -> None:
    bundle.path.chmod(0o555)
    try:
        path = put(EngineStore(bundle, "tensorrt-10", HERE))
    finally:
        bundle.path.chmod(0o755)
    assert path.is_relative_to(tmp_path / "cache")


def test_two_bundles_share_a_cache_without_mixing(bundle: Bundle, tmp_path: Path) -> None:
    text = (bundle.path / "manifest.json").read_text()
    other = Path(shutil.copytree(bundle.path, tmp_path / "other.mdeq"))
    old = bundle.manifest.files[bundle.profile("tensorrt-10").weights[0].file].sha256
    (other / "manifest.json").write_text(text.replace(old, "1" * 64))
    stores = [
        EngineStore(open_bundle(path), "tensorrt-10", HERE, tmp_path / "shared")
        for path in (bundle.path, other)
    ]
    first, second = (put(store, text) for store, text in zip(stores, (b"a", b"b"), strict=True))
    assert [store.find(GRAPH) for store in stores] == [first, second]
    assert first != second


def test_where_nothing_can_be_written_that_is_said(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = EngineStore(bundle, "tensorrt-10", HERE, tmp_path / "file")
    with pytest.raises(EngineError, match=r"cannot be kept anywhere.*--cache"):
        store.path(GRAPH)


def test_what_a_killed_build_left_is_removed_and_what_runs_is_not(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    left = store.folder / ".solve-k1.engine.4194305.tmp"  # above any process number
    running = store.folder / f".solve-k2.engine.{os.getpid()}.tmp"
    for path in (left, running):
        path.write_bytes(b"half")
    store.tidy()
    assert not left.exists()
    assert running.exists()


def test_a_build_killed_as_its_engine_took_its_place_loses_neither(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    path = put(store, b"old")
    built = path.with_name("built")
    built.write_bytes(b"new")
    store.announce(GRAPH, built, path, {}, {})
    assert store.find(GRAPH).read_bytes() == b"old"
    built.replace(path)
    assert store.find(GRAPH).read_bytes() == b"new"
    store.tidy()
    assert store.find(GRAPH).read_bytes() == b"new"
    built.write_bytes(b"newer")
    store.announce(GRAPH, built, path, {}, {})
    built.unlink()
    store.tidy()
    assert store.find(GRAPH).read_bytes() == b"new"
    assert sorted(os.listdir(path.parent)) == ["solve-k1.engine", "solve-k1.json"]


# Whose engine it is


def altered_record(path: Path, **changes: object) -> None:
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_devices_engine_is_not_used_whatever_it_claims(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fingerprint can be forged: graph, hashes and identity are those of this device."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    put(EngineStore(bundle, "tensorrt-10", HERE))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    with pytest.raises(EngineError, match="not built on this device by this user"):
        EngineStore(bundle, "tensorrt-10", HERE).find(GRAPH)


def test_an_engine_without_a_tag_is_built_again(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    altered_record(put(store), tag="")
    with pytest.raises(EngineError, match="before engines were authenticated; run edge-mdeq eng"):
        store.find(GRAPH)


def test_whoever_swaps_an_engine_cannot_make_its_record_right(bundle: Bundle) -> None:
    store = EngineStore(bundle, "tensorrt-10", HERE)
    path = put(store)
    path.write_bytes(b"theirs")
    altered_record(path, sha256=hash_file(path), bytes=6)
    with pytest.raises(EngineError, match="not built on this device"):
        store.find(GRAPH)


def test_a_key_that_others_can_read_vouches_for_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = EngineStore(bundle, "tensorrt-10", HERE)
    put(store)
    key_path().chmod(0o644)
    with pytest.raises(EngineError, match=r"device\.key, can be read or written by others"):
        store.find(GRAPH)


def test_a_signed_engine_of_another_device_is_used_where_its_key_is_required(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines for RTX GPUs are built ahead of time, on another machine."""
    pytest.importorskip("cryptography")
    for name in ("ours", "theirs"):
        make_key(tmp_path / f"{name}.pem")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "workstation"))
    path = put(EngineStore(bundle, "tensorrt-10", HERE))
    key = read_private_key(tmp_path / "ours.pem")
    sign_manifest(bundle.path, read_manifest(bundle.path), key)
    assert sign_engines(bundle, key) == {path: ""}
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "board"))

    def store(*keys: str) -> EngineStore:
        files = [tmp_path / f"{name}.pub" for name in keys]
        opened = open_bundle(bundle.path, require_signature=files or None)
        return EngineStore(opened, "tensorrt-10", HERE)

    assert store("theirs", "ours").find(GRAPH) == path
    with pytest.raises(EngineError, match="not signed by a key that --require-signature names"):
        store().find(GRAPH)
    path.write_bytes(b"theirs")
    altered_record(path, sha256=hash_file(path))
    with pytest.raises(EngineError, match="not built on this device"):
        store("ours").find(GRAPH)


def test_a_strangers_engine_is_not_vouched_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    make_key(tmp_path / "key.pem")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    path = put(EngineStore(bundle, "tensorrt-10", HERE))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    found = sign_engines(bundle, read_private_key(tmp_path / "key.pem"))
    assert found[path].startswith("not built on this device")
    assert json.loads(path.with_suffix(".json").read_text())["signatures"] == []
