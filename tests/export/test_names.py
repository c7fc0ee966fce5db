"""Names that were typed: the ones that may have been meant."""

from __future__ import annotations

import pytest

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.registry import SOLVERS
from mdeq_export.names import check_names, near_names
from mdeq_export.profiles import PROFILES

TENSORRT = ["tensorrt-8", "tensorrt-10", "tensorrt-11", "tensorrt-rtx"]


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("trt-10", ["tensorrt-10"]),
        ("TRT_10", ["tensorrt-10"]),
        ("tensorrt10", ["tensorrt-10"]),
        ("tensort-10", ["tensorrt-10"]),
        ("tensorrt-10.3", ["tensorrt-10"]),
        ("trt-rtx", ["tensorrt-rtx"]),
        ("rtx", ["tensorrt-rtx"]),
        ("trt", TENSORRT),
        ("TensorRT", TENSORRT),
        ("tensorrt-12", ["tensorrt-10", "tensorrt-11"]),
        ("cuda", ["ort-cuda"]),
        ("onnxruntime", ["ort-cpu", "ort-cuda"]),
        ("openvino", []),
        ("x", []),
        ("", []),
    ],
)
def test_near_targets(typed: str, near: list[str]) -> None:
    assert near_names(typed, PROFILES) == near


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("Anderson", ["anderson"]),
        ("andersen", ["anderson"]),
        ("fixed-point", ["fixed_point"]),
        ("fixed", ["fixed_point"]),
        ("broydn", ["broyden"]),
        ("auot", ["auto"]),
        ("newton", []),
    ],
)
def test_near_solvers(typed: str, near: list[str]) -> None:
    assert near_names(typed, (*SOLVERS, "auto")) == near


def test_all_unknown_names_are_refused_at_once() -> None:
    known = ("red", "green", "greenish")
    check_names("colour", ["green", "red"], known)
    with pytest.raises(ConfigError) as refused:
        check_names("colour", ["gren", "red", "blue", "greens"], known)
    assert str(refused.value) == (
        "unknown colour 'gren' (did you mean 'green'?), 'blue', 'greens' (did you mean 'green'?); "
        "known: red, green, greenish"
    )
    with pytest.raises(
        ConfigError, match=r"'Gree' \(did you mean 'green' or 'greenish'\?\); known"
    ):
        check_names("colour", ["Gree"], known)
