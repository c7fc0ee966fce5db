"""Photographs as they are read, and what is refused by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data import SCENE, cut, draw_photograph, empty, palette, text, write_image, write_png

from edge_mdeq.datasets.images import read_image
from edge_mdeq.errors import DataError

Spoil = Callable[[Path], None]


def test_a_photograph_is_rgb(tmp_path: Path) -> None:
    image = draw_photograph(1, 0)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    write_image(tmp_path / "a.jpg", image)
    lossy = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(lossy - image).mean() < 12
    assert lossy[..., 0].mean() > 2 * lossy[..., 2].mean()  # red stays red


def test_a_photograph_is_turned_upright_as_its_exif_data_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, :30] = 200  # bright on the left
    write_image(path, image)
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6: turn it clockwise
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + tag + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    raw = path.read_bytes()
    path.write_bytes(
        raw[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + raw[2:]
    )
    upright = read_image(path)
    assert upright.shape == (60, 40, 3)
    assert upright[:20].mean() > 150 > 50 > upright[40:].mean()  # bright on top


def grey(path: Path) -> None:
    write_image(path, draw_photograph(0, 0)[..., 0])


def deep_grey(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros(SCENE, dtype=np.uint16))


def deep(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((*SCENE, 3), dtype=np.uint16))


def transparent(path: Path) -> None:
    write_png(path, 6, np.zeros((*SCENE, 4), dtype=np.uint8))


def transparent_grey(path: Path) -> None:
    write_png(path, 4, np.zeros((*SCENE, 2), dtype=np.uint8))


def truncated(path: Path) -> None:
    write_image(path, draw_photograph(0, 0))
    cut(path)


def folder_instead(path: Path) -> None:
    path.mkdir()


BAD = [
    (grey, "is grey; expected an RGB photograph. Convert it, or set data.grey in the recipe"),
    (deep_grey, "has uint16 pixels; expected 8 bits a channel, convert it"),
    (deep, "has uint16 pixels; expected 8 bits a channel, convert it"),
    (transparent, "has an alpha channel; expected an RGB photograph, convert it"),
    (transparent_grey, "has an alpha channel; expected an RGB photograph, convert it"),
    (palette, "has a palette; expected an RGB photograph, convert it"),
    (text, "cannot be decoded as an image; replace or remove it"),
    (empty, "cannot be decoded as an image; replace or remove it"),
    (truncated, r"is truncated after \d+ bytes; copy it again or remove it"),
    (folder_instead, "Is a directory"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_a_bad_photograph_is_refused_and_named(tmp_path: Path, spoil: Spoil, message: str) -> None:
    spoil(tmp_path / "bad.png")
    with pytest.raises(DataError, match=r"bad\.png.*" + message):
        read_image(tmp_path / "bad.png")


def test_so_is_a_truncated_jpeg_which_decoders_fill_with_grey(tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    write_image(path, draw_photograph(0, 0))
    whole = path.read_bytes()
    for kept in range(len(whole) // 4, len(whole) - 1, 97):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"bad\.jpg.*(truncated|cannot be decoded)"):
            read_image(path)


def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path: Path) -> None:
    """Cameras put previews and padding there."""
    path = tmp_path / "a.jpg"
    write_image(path, draw_photograph(0, 0))
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_cut_jpeg_is_not_saved_by_its_thumbnail_s_end_marker(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_image(path, draw_photograph(0, 0, (8, 8)))
    thumbnail = path.read_bytes()
    write_image(path, draw_photograph(0, 0))
    raw = path.read_bytes()
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(raw[:2] + segment + raw[2:])
    assert read_image(path).shape == (44, 60, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="is truncated"):
        read_image(path)


def test_grey_photographs_are_taken_where_the_recipe_allows_them(tmp_path: Path) -> None:
    grey(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", grey=True)
    assert image.shape == (44, 60, 3)
    assert (image[..., 0] == image[..., 1]).all()
    transparent_grey(tmp_path / "b.png")
    with pytest.raises(DataError, match="alpha"):
        read_image(tmp_path / "b.png", grey=True)
