"""Colours and names of classes: told apart by all eyes, or the user's own."""

from __future__ import annotations

import colorsys
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edge_mdeq.errors import ConfigError
from mdeq_runtime.classes import read_classes
from mdeq_runtime.palette import SAFE, colour_of


def maker() -> ModuleType:
    """The program that found the colours; it is beside the package, not in it."""
    path = Path(__file__).parents[2] / "runtime" / "make_palette.py"
    spec = importlib.util.spec_from_file_location("make_palette", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("count", "apart"), [(7, 16), (20, 16), (24, 14)])
def test_no_eyes_take_one_colour_for_another(count: int, apart: float) -> None:
    nearest = maker().nearest
    assert nearest(np.array(SAFE[:count], np.uint8)) > apart
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.65, 0.95) for i in range(count)]
    usual = np.array(hues) * 255
    assert nearest(usual.astype(np.uint8)) < apart / 2, "hues alone are not told apart"


def test_red_and_green_are_one_colour_to_many() -> None:
    """The measure itself, by what is known: of two like these only usual eyes see much."""
    make = maker()
    red_green = np.array([(200, 80, 60), (110, 120, 60)], np.uint8)
    apart = np.linalg.norm(np.diff(make.seen(red_green), axis=1)[:, 0], axis=-1)
    usual, protan, deutan, tritan = apart
    assert min(usual, tritan) > 40 > 25 > max(protan, deutan)


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len({colour_of(index) for index in range(150)}) == 150


LABELS, PALETTE = ("sky", "road", "car"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))


@pytest.mark.parametrize(
    ("text", "labels", "palette"),
    [
        ("a\nb\nc\n", ("a", "b", "c"), PALETTE),
        ("128 64 128\n#804081\n0,0,255", LABELS, ((128, 64, 128), (128, 64, 129), (0, 0, 255))),
        ("traffic light #804080\ncar 1\n", ("traffic light", "car 1", "car"),
         ((128, 64, 128), (4, 5, 6), (7, 8, 9))),
        ("# of my own\n\nGehweg, 10, 20, 30\n", ("Gehweg", "road", "car"),
         ((10, 20, 30), (4, 5, 6), (7, 8, 9))),
    ],
)  # fmt: skip
def test_a_file_of_ones_own_names_or_colours_classes(
    tmp_path: Path, text: str, labels: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    assert read_classes(path, LABELS, PALETTE) == (labels, palette)


def test_what_neither_file_nor_bundle_has_is_made_up(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("1 2 3\nroad\n", encoding="utf-8")
    assert read_classes(path) == (("class 0", "road"), ((1, 2, 3), SAFE[1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"road 300 0 0\n", r"line 1: colour 300 0 0 is above 255"),
        (b"# nothing\n\n", "has no classes; write a line for each"),
        (b"a\nb\nc\nd\n", "has 4 classes, the model 3"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_classes(path, LABELS)
