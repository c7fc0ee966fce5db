from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from mdeq_runtime.glyphs import CHARACTERS, letter
from mdeq_runtime.overlay import draw
from mdeq_runtime.results import Result

LINE = 64  # the sheet's own line height: nothing is resized


def test_every_character_has_a_cell_with_ink_of_its_own() -> None:
    cells = {character: letter(cv2, character, LINE) for character in CHARACTERS}
    assert not cells.pop(" ").any()
    assert all(cell.max() > 200 for cell in cells.values())
    assert len({(cell.shape, cell.tobytes()) for cell in cells.values()}) == len(cells)


@pytest.mark.parametrize("plain", ["aàáâãäå", "eèéêë", "oòóôõö", "uùúûü", "nñ", "AÀÁÂÃÄ"])
def test_an_accented_letter_holds_its_letter(plain: str) -> None:
    first, *others = [letter(cv2, character, LINE)[24:56].astype(float) for character in plain]
    for accented in others:  # so the sheet is in the order it claims
        assert accented.shape == first.shape
        assert np.corrcoef(first.ravel(), accented.ravel())[0, 1] > 0.9


def test_marks_lie_where_they_belong() -> None:
    def middle(character: str) -> tuple[float, float]:
        ink = letter(cv2, character, LINE).astype(float)
        rows, columns = np.indices(ink.shape)
        return float((rows * ink).sum() / ink.sum()), float((columns * ink).sum() / ink.sum())

    assert middle("'")[0] < middle("-")[0] < middle(".")[0] < middle("_")[0]
    assert middle("[")[1] < letter(cv2, "[", LINE).shape[1] / 2 + 3
    hole = letter(cv2, "O", LINE)
    assert hole[31, hole.shape[1] // 2] == 0  # half way between baseline (48) and cap height


def test_numbers_that_change_do_not_move_what_follows() -> None:
    assert len({letter(cv2, digit, LINE).shape for digit in "0123456789"}) == 1


@pytest.mark.parametrize("height", [15, 22, 40, 52])
def test_a_line_scales_with_its_height(height: int) -> None:
    text = "pavement 10%"
    large, small = letter(cv2, text, LINE), letter(cv2, text, height)
    assert small.shape[0] == height
    assert small.shape[1] == pytest.approx(large.shape[1] * height / LINE, abs=1)
    assert small.mean() == pytest.approx(large.mean(), rel=0.05)  # as dark, only smaller


@pytest.mark.parametrize("text", ["", "дорога 5%", "道路"])
def test_other_alphabets_are_left_to_opencv(text: str) -> None:
    cover = letter(cv2, text, 30)
    assert cover.shape[0] == 30
    assert cover.any() == bool(text)


def test_a_frame_is_lettered_without_opencvs_font_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the font engine takes 10 MB")

    monkeypatch.setattr(cv2, "putText", refuse)
    monkeypatch.setattr(cv2, "getTextSize", refuse)
    image = np.full((240, 320, 3), 100, np.uint8)
    answer = Result(np.zeros((240, 320), np.uint8), None, 2, 0.02, True, True, "", {"solve": 5.0})
    plain = draw(image, answer, ("",))
    named = draw(image, answer, ("Straße",))
    assert (named != plain).any()
    assert named.min(axis=2).max() > 240  # the letters are white


def test_text_at_the_edge_of_a_tiny_frame_is_cut_off() -> None:
    image = np.full((9, 12, 3), 200, np.uint8)
    drawn = draw(image, Result(np.zeros((9, 12), np.uint8), None, 2, 0.5, False, True, ""), ("a",))
    assert drawn.shape == image.shape
