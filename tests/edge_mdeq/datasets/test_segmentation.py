"""Images with index masks: what an item is, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data import SCENE, TRAIN, VOID, cut, draw_scene, palette, text

from edge_mdeq.datasets import IGNORED, SegmentationFolder, class_frequencies
from edge_mdeq.errors import DataError

Spoil = Callable[[Path], None]


def load(data: Path, split: str = "train", layout: str = "camvid") -> SegmentationFolder:
    return SegmentationFolder(data, split, 3, (VOID,), layout=layout)


@pytest.mark.parametrize("layout", ["camvid", "cityscapes"])
@pytest.mark.parametrize("cache", [True, False])
def test_an_item_is_the_image_in_rgb_and_its_mask_with_void_ignored(
    request: pytest.FixtureRequest, layout: str, cache: bool
) -> None:
    data = SegmentationFolder(
        request.getfixturevalue(layout), "train", 3, (VOID,), layout=layout, cache=cache
    )
    assert len(data) == TRAIN
    pairs = [data[index] for index in range(len(data))]
    for seed in range(TRAIN):
        expected_image, expected_mask = draw_scene(seed)
        expected_mask[expected_mask == VOID] = IGNORED
        index = seed if layout == "camvid" else seed // 2 + TRAIN // 2 * (seed % 2)  # by city
        image, mask = pairs[index]
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected_image)
        np.testing.assert_array_equal(mask, expected_mask)


def test_items_are_fitted_to_a_size_when_asked(camvid: Path) -> None:
    image, mask = SegmentationFolder(camvid, "val", 3, (VOID,), (32, 48))[0]
    assert image.shape == (3, 32, 48)
    assert mask.shape == (32, 48)
    assert set(np.unique(mask).tolist()) <= {0, 1, 2, IGNORED}


def test_letterboxing_ignores_the_padding(camvid: Path) -> None:
    image, mask = SegmentationFolder(camvid, "val", 3, (VOID,), (56, 56), fit="letterbox")[0]
    assert (mask[:8] == IGNORED).all()
    assert (mask[48:] == IGNORED).all()
    scene, expected = draw_scene(100)
    expected[expected == VOID] = IGNORED
    np.testing.assert_array_equal(mask[8:48], expected)
    np.testing.assert_array_equal(image[:, 8:48].transpose(1, 2, 0), scene)


def rename_folder(data: Path) -> None:
    (data / "trainannot").rename(data / "masks")


def empty_folder(data: Path) -> None:
    for path in (data / "train").iterdir():
        path.unlink()


def remove_mask(data: Path) -> None:
    (data / "trainannot" / "002.png").unlink()


def shrink_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros((40, 55), dtype=np.uint8))


def colour_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros((*SCENE, 3), dtype=np.uint8))


def deepen_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros(SCENE, dtype=np.uint16))


def palette_mask(data: Path) -> None:
    palette(data / "trainannot" / "002.png")


def mislabel(data: Path) -> None:
    mask = np.zeros(SCENE, dtype=np.uint8)
    mask[0, :2] = 3, 200
    cv2.imwrite(str(data / "trainannot" / "002.png"), mask)


def corrupt_image(data: Path) -> None:
    text(data / "train" / "002.png")


def corrupt_mask(data: Path) -> None:
    text(data / "trainannot" / "002.png")


def cut_mask(data: Path) -> None:
    cut(data / "trainannot" / "002.png")


def resize_pair(data: Path) -> None:
    for kind in ("train", "trainannot"):
        path = str(data / kind / "003.png")
        cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[:32])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename_folder, "trainannot is not a folder; expected .* to hold train/, trainannot/"),
        (empty_folder, "train holds no images"),
        (remove_mask, r"train/002\.png has no mask: .*trainannot/002\.png is missing; add it"),
        (shrink_mask, r"trainannot/002\.png is \(40, 55\), its image is \(40, 56\); make both"),
        (colour_mask, r"trainannot/002\.png has shape \(40, 56, 3\).*expected an 8-bit index"),
        (deepen_mask, r"trainannot/002\.png has .* type uint16; expected an 8-bit index"),
        (palette_mask, r"trainannot/002\.png has a palette; .* save its indices as grey values"),
        (
            mislabel,
            r"trainannot/002\.png holds labels \[3, 200\], out of range for 3 classes; list",
        ),
        (corrupt_image, r"train/002\.png cannot be decoded"),
        (corrupt_mask, r"trainannot/002\.png cannot be decoded"),
        (cut_mask, r"trainannot/002\.png is truncated"),
        (resize_pair, r"train/003\.png is \(32, 56\), 000\.png is \(40, 56\); .* of one size"),
    ],
)
def test_unusable_masks_and_images_are_refused_and_named(
    camvid: Path, spoil: Spoil, message: str
) -> None:
    spoil(camvid)
    with pytest.raises(DataError, match=message):
        load(camvid)


@pytest.mark.parametrize("spoil", [mislabel, corrupt_image, cut_mask, resize_pair])
def test_without_the_cache_they_are_refused_when_they_are_read(camvid: Path, spoil: Spoil) -> None:
    spoil(camvid)
    data = SegmentationFolder(camvid, "train", 3, (VOID,), cache=False)
    with pytest.raises(DataError, match=r"00[23]\.png"):
        [data[index] for index in range(len(data))]


def test_a_missing_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent/train is not a folder"):
        load(tmp_path / "absent")


def test_cityscapes_says_what_it_expects(cityscapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected .* to hold leftImg8bit/train/CITY/"):
        load(tmp_path, layout="cityscapes")
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    (tmp_path / "gtFine" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no city folders with images"):
        load(tmp_path, layout="cityscapes")
    mask = next((cityscapes / "gtFine" / "train" / "bochum").iterdir())
    mask.unlink()
    with pytest.raises(
        DataError, match=rf"_leftImg8bit\.png has no mask: .*{mask.name} is missing"
    ):
        load(cityscapes, layout="cityscapes")


def test_a_class_that_never_occurs_is_named(camvid: Path) -> None:
    with pytest.raises(DataError, match=r"classes \[3\] never occur in .*train"):
        class_frequencies(SegmentationFolder(camvid, "train", 4, (VOID,)), 4)


def test_frequencies_are_shares_of_the_labelled_pixels(camvid: Path) -> None:
    folder = load(camvid)
    masks = np.stack([draw_scene(seed)[1] for seed in range(len(folder))])
    counts = np.array([(masks == label).sum() for label in range(3)])
    np.testing.assert_allclose(class_frequencies(folder, 3), counts / (masks != VOID).sum())
