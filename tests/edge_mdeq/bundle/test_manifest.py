"""The manifest is a contract: what does not fit is named with its path."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tiny_bundle import CONTENT, GRAPH, PART_FIELDS, manifest_of

from edge_mdeq.bundle import SCHEMA, Manifest
from edge_mdeq.bundle.decoding import decode_manifest
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.errors import BundleError, ConfigError


def decode(value: object) -> Manifest:
    return decode_manifest(json.dumps(value).encode(), "manifest.json")


def test_a_manifest_survives_its_json() -> None:
    manifest = manifest_of(CONTENT)
    assert decode_manifest(encode_manifest(manifest), "manifest.json") == manifest


def test_the_same_manifest_gives_the_same_bytes() -> None:
    first = encode_manifest(manifest_of(CONTENT))
    assert encode_manifest(decode_manifest(first, "manifest.json")) == first


def test_a_rung_counts_the_evaluations_of_all_its_steps() -> None:
    assert manifest_of(CONTENT).profiles["ort-cpu"].rungs[0].evaluations == 4


def test_the_input_size_is_height_and_width() -> None:
    assert manifest_of(CONTENT).input.size == (32, 48)


def test_confidence_may_be_absent(raw: dict[str, Any]) -> None:
    raw["confidence"] = None
    assert decode(raw).confidence is None


def test_a_newer_schema_asks_for_an_upgrade_even_where_it_has_new_fields(
    raw: dict[str, Any],
) -> None:
    raw |= {"schema": SCHEMA + 1, "new": 1, "created_by": "edge-mdeq 9.1"}
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install 'edge-mdeq>=9\.1'"):
        decode(raw)
    raw["requires"] = "8.2"
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install 'edge-mdeq>=8\.2'"):
        decode(raw)
    raw |= {"requires": "1'; rm -rf ~", "created_by": ["9"]}
    with pytest.raises(BundleError, match=r"schema 2, .*: pip install --upgrade edge-mdeq"):
        decode(raw)


def test_a_version_that_is_required_is_named_where_only_the_schema_is_known(
    raw: dict[str, Any],
) -> None:
    raw |= {"requires": "99.0"}
    with pytest.raises(BundleError, match=r"not for edge-mdeq .*'edge-mdeq>=99\.0'"):
        decode(raw)


@pytest.mark.parametrize("value", [[], 3, {}, {"format": "other"}], ids=str)
def test_other_json_is_not_a_manifest(value: object) -> None:
    with pytest.raises(BundleError, match="not the manifest of an edge-mdeq bundle"):
        decode(value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000],
    ids=["empty", "cut off", "not UTF-8", "nested without end"],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is not valid JSON"):
        decode_manifest(data, "manifest.json")


def put(raw: dict[str, Any], path: str, value: object) -> None:
    """Set the field at ``path``, such as ``states.0.name``."""
    *parents, last = path.split(".")
    target: Any = raw
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    target[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "detection", r"`\$\.task`"),
        ("labels", "sky", r"Expected `array`, got `str` - at `\$\.labels`"),
        ("states.1.shape", [1, "16"], r"Expected `int`, got `str` - at `\$\.states\[.*\]\.shape"),
        ("input.tensor.shape", [1, 32, 48], r"input shape \(1, 32, 48\) is not \(B, H, W, 3\)"),
        ("input.mean", [0.1, 0.2], r"at `\$\.input\.mean`"),
        ("output.kind", "logits", r"`\$\.output\.kind`"),
        ("solver.settings", {"tau": "x"}, r"`\$\.solver\.settings"),
        ("verification.tolerances.fp32.atol", None, r"Expected `float`, got `null` - at `\$\.ver"),
        ("palette", [[0, 0]], r"at `\$\.palette"),
        ("state_outputs", ["next_0"], "states and state_outputs must have the same positive"),
        ("values", ["value_0"], "values and states must have the same length"),
        ("history_outputs", [], "history and history_outputs must have the same length"),
        ("profiles", {"x": {"opset": 21, "weights": [], "rungs": []}}, r"profiles\.x has no rungs"),
        ("states.0.shape", [1, 2**31, 2**31, 2], r"more than \d+ bytes"),
        ("states.0.shape", [1, 0], r"\[1, 0\], which is none"),
        ("states.0.shape", [], r"\[\], which is none"),
        ("states.0.shape", [-2, 4], r"\[-2, 4\], which is none"),
        ("output.tensor.dtype", "object", "has the type 'object'; known: "),
        ("labels", ["x"] * 257, "257 are more than a mask of uint8 can name"),
        ("labels", ["sky", "\x1b[2J"], r"`\$\.labels\[1\]` holds control characters"),
        ("palette", [[0, 0, 256]], "three numbers from 0 to 255"),
        ("requires", "soon", "not a version"),
        (
            "profiles.ort-cpu.costs",
            {GRAPH: {"nodes": 1, "weights": -1, "largest_weight": 0, "values": 0}},
            "less than nothing",
        ),
    ],
)
def test_a_misfit_is_named_with_its_path(
    raw: dict[str, Any], field: str, value: object, message: str
) -> None:
    put(raw, field, value)
    with pytest.raises(BundleError, match=f"manifest.json: .*{message}"):
        decode(raw)


def test_a_missing_field_is_named(raw: dict[str, Any]) -> None:
    del raw["residual"]["name"]
    with pytest.raises(BundleError, match=r"required field `name` - at `\$\.residual`"):
        decode(raw)


def test_an_unknown_field_is_named_with_its_path(raw: dict[str, Any]) -> None:
    raw["states"][1]["layout"] = "NCHW"
    with pytest.raises(BundleError, match=r"unknown field `\$\.states\[1\]\.layout`"):
        decode(raw)


def test_a_rung_without_evaluations_is_refused(raw: dict[str, Any]) -> None:
    raw["profiles"]["ort-cpu"]["rungs"][0]["steps"][1]["evaluations"] = 0
    with pytest.raises(BundleError, match="needs steps of at least one evaluation"):
        decode(raw)


@pytest.mark.parametrize(
    "used",
    ["rungs.0.graph", "weights.0.file", *(f"parts.0.{n}" for n in PART_FIELDS)],
)
def test_a_file_that_a_profile_uses_must_be_listed(raw: dict[str, Any], used: str) -> None:
    put(raw, f"profiles.ort-cpu.{used}", "elsewhere.bin")
    with pytest.raises(BundleError, match=r"ort-cpu: 'elsewhere\.bin' is not listed in files"):
        decode(raw)


def test_a_graph_is_an_onnx_file_by_its_name(raw: dict[str, Any]) -> None:
    """ONNX Runtime takes NAME.ort for a format of its own, which nothing here looks through."""
    raw["files"]["solve.ort"] = raw["files"][GRAPH]
    raw["profiles"]["ort-cpu"]["rungs"][0]["graph"] = "solve.ort"
    with pytest.raises(BundleError, match=r"'solve\.ort' is no \.onnx file"):
        decode(raw)


@pytest.mark.parametrize("entry", [{"sha256": "0", "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}])
def test_a_files_entry_must_be_able_to_hold(raw: dict[str, Any], entry: dict[str, Any]) -> None:
    raw["files"][GRAPH] = entry
    with pytest.raises(BundleError, match="are no file"):
        decode(raw)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "graphs/../../secret", "a\\..\\b", "", "."]
)
def test_a_path_that_leaves_the_bundle_is_refused(raw: dict[str, Any], name: str) -> None:
    raw["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        decode(raw)


def test_a_senseless_manifest_cannot_even_be_made() -> None:
    with pytest.raises(ConfigError, match="same positive length"):
        replace(manifest_of(CONTENT), states=(), state_outputs=())
