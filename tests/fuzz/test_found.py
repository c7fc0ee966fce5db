"""What fuzzing has found, in words: each is refused by an error of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mdeq.bundle import Rung, Step, TensorSpec, open_bundle
from edge_mdeq.bundle.decoding import decode_manifest
from edge_mdeq.config import decode_card
from edge_mdeq.datasets.layouts import DataConfig, open_classification, open_segmentation
from edge_mdeq.errors import (
    BundleError,
    ConfigError,
    DataError,
    EdgeMdeqError,
    SinkError,
    SourceError,
)
from mdeq_runtime.ladder import plan
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources import SourceOptions, open_source

NO_TEXT = b'{"format": "\xff\xfe"}'  # JSON but for a string that is no UTF-8


def test_text_that_is_no_utf8_is_no_json() -> None:
    with pytest.raises(BundleError, match="not valid JSON"):
        decode_manifest(NO_TEXT, "manifest.json")
    with pytest.raises(ConfigError, match="not valid JSON"):
        decode_card(NO_TEXT, "model.json")


def test_a_tensor_of_hundreds_of_dimensions_is_none() -> None:
    with pytest.raises(ConfigError, match="which is none"):
        TensorSpec("state", "float32", (1,) * 303)


def test_text_that_is_no_utf8_is_no_policy() -> None:
    controls = pytest.importorskip("mdeq_runtime.web.controls", reason="needs the extra web")
    with pytest.raises(ConfigError, match="this is no policy"):
        controls.read_policy(b'{"policy": "\xff"}')


@pytest.mark.parametrize("name", ["a" * 300, "b/" * 3000 + "c.mp4"], ids=["name", "path"])
@pytest.mark.parametrize("act", [open_source, open_sink, lambda name: open_bundle(Path(name))])
def test_a_name_that_is_too_long_for_any_file_is_refused(
    name: str, act: Callable[[str], Any]
) -> None:
    pytest.importorskip("cv2", reason="needs the extra camera")
    with pytest.raises(EdgeMdeqError):
        act(name)


def test_links_that_go_round_in_circles_are_no_place(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the extra camera")
    for link, target in (("a", "b"), ("b", "a"), ("x.mp4", "x.mp4"), ("y.jsonl", "y.jsonl")):
        os.symlink(target, tmp_path / link)
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "a")
    for name in ("x.mp4", "a/x.mp4"):
        with pytest.raises(EdgeMdeqError):
            open_source(str(tmp_path / name))


@pytest.mark.parametrize(
    "uri",
    ["http://[1/x.mp4", "rtsp://[]/x", "https://[", "http://joe:hidden@\u2100/"],
    ids=["open", "empty", "cut", "no host"],
)
def test_what_is_no_address_is_refused_and_hides_its_password(uri: str) -> None:
    pytest.importorskip("cv2", reason="needs the extra camera")
    with pytest.raises(SourceError, match="is no address") as caught:
        open_source(uri)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "a\0*.png", "file://a%00b.png"])
def test_a_source_with_a_null_character_is_none(name: str) -> None:
    with pytest.raises(SourceError, match="null character"):
        open_source(name)


@pytest.mark.parametrize("name", ["a\0.mp4", "masks://a\0", "a\0/", "a\0/%06d.png"])
def test_an_output_with_a_null_character_is_none(name: str) -> None:
    with pytest.raises(SinkError, match="null character"):
        open_sink(name)


def test_more_evaluations_than_can_be_planned_are_none() -> None:
    with pytest.raises(ConfigError, match="no graph has so many"):
        Rung((Step("fp32", 2**31), Step("fp32", 1)), "solve.onnx")
    for counts in ({"n": 2**31}, {"n": 1, "cold": 2**31}):
        with pytest.raises(ConfigError, match="at most"):
            FixedIterations(**counts)
    assert len(plan((Rung((Step("fp32", 3),), "solve-k3.onnx"),), 9999)) == 3333


@pytest.mark.parametrize("layout", ["camvid", "cityscapes"])
def test_a_folder_of_masks_whose_name_is_too_long_is_missing(layout: str) -> None:
    pytest.importorskip("cv2", reason="needs the extra camera")
    with pytest.raises(DataError):
        open_segmentation(DataConfig(layout=layout), Path("a" * 5000), "val", 3, None)


@pytest.mark.parametrize("layout", ["folder", "cifar10"])
def test_a_folder_of_images_whose_name_is_too_long_is_missing(layout: str) -> None:
    pytest.importorskip("cv2", reason="needs the extra camera")
    with pytest.raises(DataError):
        open_classification(
            DataConfig(layout=layout), Path("a" * 5000), "val", 3, ("a", "b", "c"), (32, 32)
        )


def test_a_picture_that_no_camera_takes_is_not_asked_for() -> None:
    with pytest.raises(ConfigError, match="at most 16384"):
        SourceOptions(width=10**18, height=10**18)
