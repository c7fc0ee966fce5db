"""Annotated pictures as an output."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import SinkError
from mdeq_runtime.overlay import draw
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources import open_source

SIZE = (48, 64)
LABELS, PALETTE = ("sky", "road"), ((10, 20, 200), (200, 20, 10))


def frame(index: int) -> Frame:
    return Frame(np.full((*SIZE, 3), 10 * index, np.uint8), index, index / 10)


def result(index: int) -> Result:
    mask = np.zeros(SIZE, np.uint8)
    mask[:, SIZE[1] // 2 :] = 1
    return Result(mask, None, 2, 0.1, True, True, "", index=index)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("%06d.png", ["000003.png", "000012.png"]), ("test_%i.JPG", ["test_12.JPG", "test_3.JPG"])],
)
def test_a_picture_per_frame_named_by_its_number(
    tmp_path: Path, pattern: str, names: list[str]
) -> None:
    folder = tmp_path / "made" / "seen"
    with open_sink(folder / pattern, labels=LABELS, palette=PALETTE) as sink:
        for index in (3, 12):
            assert sink.write(frame(index), result(index))
    assert sorted(path.name for path in folder.iterdir()) == names
    drawn = draw(frame(12).image, result(12), LABELS, PALETTE)
    for name in names:
        image = cv2.imread(str(folder / name))
        assert image is not None
        assert image.shape == drawn.shape
        if name == "000012.png":
            np.testing.assert_array_equal(image, drawn)


def test_one_picture_is_the_newest_and_always_whole(tmp_path: Path) -> None:
    path, stop = tmp_path / "newest.png", threading.Event()
    found: list[bool] = []

    def look() -> None:
        while not stop.is_set():
            if path.exists():
                image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
                found.append(image is not None and image.shape == (*SIZE, 3))

    looker = threading.Thread(target=look)
    looker.start()
    with open_sink(path, labels=LABELS, palette=PALETTE) as sink:
        for index in range(25):
            sink.write(frame(index), result(index))
    stop.set()
    looker.join()
    assert found
    assert all(found)
    drawn = draw(frame(24).image, result(24), LABELS, PALETTE)
    np.testing.assert_array_equal(cv2.imread(str(path)), drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["newest.png"]


@pytest.mark.parametrize("name", ["100%.jpg", "%d-%d.png", "%s.jpg"])
def test_a_percent_sign_has_to_be_the_place_of_a_number(tmp_path: Path, name: str) -> None:
    with pytest.raises(SinkError, match=r"write such as %06d"):
        open_sink(tmp_path / name)


def test_pictures_take_no_source_pictures_place(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "000000.jpg"), frame(3).image)
    before = (tmp_path / "000000.jpg").read_bytes()
    for target in ("%06d.jpg", "000000.jpg"):
        with pytest.raises(SinkError, match=r"is the source itself|holds the source's images"):
            run(lambda f: result(f.index), open_source(tmp_path), [open_sink(tmp_path / target)])
    assert (tmp_path / "000000.jpg").read_bytes() == before


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "seen" / "%d.png")
    (tmp_path / "seen").rmdir()
    with pytest.raises(SinkError, match=r"cannot write .*0\.png \(No such file"):
        sink.write(frame(0), result(0))
