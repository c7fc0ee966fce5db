"""Datasets as real files in four layouts: what an item is, and what is refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_training import (
    CIFAR_LABELS,
    LABELS,
    PER_CLASS,
    SCENE,
    TRAIN,
    VOID,
    Image,
    draw_photograph,
    draw_scene,
    write_image,
)

from edge_mdeq.errors import DataError
from edge_mdeq.training.datasets import (
    IGNORED,
    Cifar10,
    ImageFolder,
    SegmentationFolder,
    class_frequencies,
)
from edge_mdeq.training.datasets.classification import random_crop
from edge_mdeq.training.datasets.images import read_image
from edge_mdeq.training.recipe import AugmentConfig

SIZE = (32, 32)
Spoil = Callable[[Path], None]


def write_png(path: Path, colour_type: int, pixels: Image, palette: bytes = b"") -> None:
    """A PNG file of 8 bits a channel whose header says ``colour_type``: some OpenCV never writes.

    Args:
        path: where to.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        pixels: (h, w) or (h, w, channels).
        palette: three bytes an entry.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    chunks += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def cut(path: Path) -> None:
    """Leave the first two thirds of a file."""
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])


# Reading photographs


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


def palette(path: Path) -> None:
    write_png(path, 3, np.zeros(SCENE, dtype=np.uint8), bytes(range(6)))


def text(path: Path) -> None:
    path.write_text("not an image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


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


# Index masks


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
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected_image))
        assert torch.equal(mask, torch.from_numpy(expected_mask))


def test_items_are_fitted_to_a_size_when_asked(camvid: Path) -> None:
    image, mask = SegmentationFolder(camvid, "val", 3, (VOID,), (32, 48))[0]
    assert tuple(image.shape) == (3, 32, 48)
    assert tuple(mask.shape) == (32, 48)
    assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORED}


def test_letterboxing_ignores_the_padding(camvid: Path) -> None:
    image, mask = SegmentationFolder(camvid, "val", 3, (VOID,), (56, 56), fit="letterbox")[0]
    assert (mask[:8] == IGNORED).all()
    assert (mask[48:] == IGNORED).all()
    scene, expected = draw_scene(100)
    expected[expected == VOID] = IGNORED
    assert torch.equal(mask[8:48], torch.from_numpy(expected))
    assert torch.equal(image[:, 8:48].permute(1, 2, 0), torch.from_numpy(scene))


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


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # torch forks
def test_in_a_process_that_reads_ahead_too(camvid: Path) -> None:
    corrupt_image(camvid)
    data = SegmentationFolder(camvid, "train", 3, (VOID,), cache=False)
    loader = torch.utils.data.DataLoader(data, 2, num_workers=1)
    with pytest.raises(DataError, match=r"train/002\.png cannot be decoded"):
        list(loader)


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


# A folder per class


def open_folder(data: Path, split: str = "train", cache: bool = True) -> ImageFolder:
    return ImageFolder(data, split, 3, LABELS, SIZE, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_is_a_class(folder: Path, cache: bool) -> None:
    data = open_folder(folder, cache=cache)
    assert len(data) == 3 * PER_CLASS
    for index in range(len(data)):
        image, label = data[index]
        assert (tuple(image.shape), image.dtype) == ((3, *SIZE), torch.uint8)
        assert label == index // PER_CLASS
        strongest = image.float().mean(dim=(1, 2)).argmax()  # discs are red and boxes blue
        assert label == 0 or strongest == (0 if label == 1 else 2)
    np.testing.assert_allclose(data.frequencies(), 1 / 3)


def test_labels_that_are_not_given_are_the_sorted_folders(folder: Path) -> None:
    data = ImageFolder(folder, "train", 3, (), SIZE)
    assert data.labels == ("box", "disc", "ground")
    assert data.targets == [label for label in range(3) for _ in range(PER_CLASS)]


def test_the_validation_folder_has_either_name(folder: Path) -> None:
    expected = open_folder(folder, "val")[0][0]
    (folder / "val").rename(folder / "validation")
    assert torch.equal(open_folder(folder, "val")[0][0], expected)


def test_without_augmentation_the_centre_is_taken(folder: Path) -> None:
    whole = ImageFolder(folder, "val", 3, LABELS, (64, 64), fit="crop")
    centre = ImageFolder(folder, "val", 3, LABELS, (32, 32), fit="crop", centre=0.5)
    assert torch.equal(centre[5][0], whole[5][0][:, 16:48, 16:48])


def drop_class(data: Path) -> None:
    for path in (data / "val" / "disc").iterdir():
        path.unlink()
    (data / "val" / "disc").rmdir()


def empty_class(data: Path) -> None:
    for path in (data / "val" / "disc").iterdir():
        path.unlink()


def add_class(data: Path) -> None:
    (data / "val" / "cone").mkdir()


def rename_class(data: Path) -> None:
    (data / "val" / "disc").rename(data / "val" / "disk")


def spoil_photograph(data: Path) -> None:
    text(data / "val" / "disc" / "001.jpg")


def cut_photograph(data: Path) -> None:
    cut(data / "val" / "disc" / "001.jpg")


def drop_split(data: Path) -> None:
    (data / "val").rename(data / "test")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_class, r"val does not match the classes: without a folder: \['disc'\]"),
        (empty_class, r"val/disc holds no images \(.*\); add some or remove the folder"),
        (add_class, r"val does not match the classes: .*folders that are no class: \['cone'\]"),
        (rename_class, r"without a folder: \['disc'\], folders that are no class: \['disk'\]"),
        (spoil_photograph, r"val/disc/001\.jpg cannot be decoded"),
        (cut_photograph, r"val/disc/001\.jpg is truncated"),
        (drop_split, r"val is not a folder; expected .* to hold train/CLASS/ and val/CLASS/"),
    ],
)
def test_an_unusable_folder_is_refused_and_named(folder: Path, spoil: Spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=message):
        open_folder(folder, "val")


def test_the_model_s_classes_must_be_the_folder_s(folder: Path) -> None:
    with pytest.raises(DataError, match="holds 3 class folders, the model has 4 classes; set"):
        ImageFolder(folder, "train", 4, (), SIZE)


def test_large_photographs_are_kept_small(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in LABELS:
            write_image(tmp_path / split / name / "0.jpg", draw_photograph(0, 0, (300, 400)))
    data = open_folder(tmp_path)
    assert data.images is not None
    assert data.images[0].shape == (64, 86, 3)  # the shorter side twice the input's


# CIFAR-10


def test_cifar_has_five_files_to_train_on_and_one_to_validate(cifar: Path) -> None:
    train, val = Cifar10(cifar, "train", SIZE), Cifar10(cifar, "val", SIZE)
    assert (len(train), len(val)) == (20, 4)
    assert train.labels == CIFAR_LABELS
    assert train.targets == [(4 * number + k) % 10 for number in range(5) for k in range(4)]
    for index in (0, 7, 19):
        image, label = train[index]
        expected = draw_photograph(label, index // 4, (32, 32))
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected))


def test_cifar_s_files_may_lie_in_the_folder_itself(cifar: Path) -> None:
    assert len(Cifar10(cifar / "cifar-10-batches-bin", "val", SIZE)) == 4


def cut_cifar(data: Path) -> None:
    cut(data / "cifar-10-batches-bin" / "data_batch_3.bin")


def drop_cifar(data: Path) -> None:
    (data / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()


def empty_cifar(data: Path) -> None:
    empty(data / "cifar-10-batches-bin" / "data_batch_3.bin")


def drop_names(data: Path) -> None:
    (data / "cifar-10-batches-bin" / "batches.meta.txt").unlink()


def mislabel_cifar(data: Path) -> None:
    path = data / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_cifar, r"data_batch_3\.bin has 8194 bytes, not a multiple of 3073: truncated"),
        (drop_cifar, r"cannot read .*data_batch_3\.bin \(No such file.*binary files .*pickles"),
        (empty_cifar, r"data_batch_3\.bin has 0 bytes"),
        (drop_names, r"batches\.meta\.txt is missing; it names the classes"),
        (mislabel_cifar, "holds label 11, out of range for the 10 classes"),
    ],
)
def test_unusable_cifar_files_are_refused_and_named(
    cifar: Path, spoil: Spoil, message: str
) -> None:
    spoil(cifar)
    with pytest.raises(DataError, match=message):
        Cifar10(cifar, "train", SIZE)


# Crops


def test_a_crop_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    def crops(seed: int, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
        data = ImageFolder(folder, "train", 3, LABELS, SIZE, AugmentConfig(), seed=seed)
        data.epoch = epoch
        return {index: data[index][0] for index in order}

    first = crops(0, 0, [0, 1, 2])
    again = crops(0, 0, [2, 0, 1, 0])
    assert all(torch.equal(first[index], again[index]) for index in range(3))
    for other in (crops(1, 0, [0]), crops(0, 1, [0])):
        assert not torch.equal(first[0], other[0])


def test_a_random_crop_keeps_to_its_shares_and_shapes() -> None:
    """Coordinates as colours: what was cut out can be read off the crop."""
    height, width = 120, 160
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=2)
    config = AugmentConfig(scale=(0.2, 0.5), ratio=(0.8, 1.25))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(100):
        crop = random_crop(image, (40, 40), config, rng).astype(int)
        assert crop.shape == (40, 40, 3)
        h = (crop[-1, :, 0].mean() - crop[0, :, 0].mean()) * 40 / 39
        w = (crop[:, -1, 1].mean() - crop[:, 0, 1].mean()) * 40 / 39
        assert 0.75 < w / h < 1.35
        areas.append(h * w / (height * width))
    assert 0.19 < min(areas) < 0.24
    assert 0.45 < max(areas) < 0.52


def test_a_padded_crop_moves_by_at_most_the_padding() -> None:
    rows, columns = np.mgrid[1:33, 1:33].astype(np.uint8)
    image = np.stack([rows, columns, columns], axis=2)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        crop = random_crop(image, (32, 32), AugmentConfig(pad=4), rng).astype(int)
        top, left = crop[16, 16, 0] - 17, crop[16, 16, 1] - 17
        seen.add((top, left))
        shifted = np.zeros((40, 40, 3), dtype=int)
        shifted[4:36, 4:36] = image
        np.testing.assert_array_equal(crop, shifted[4 + top : 36 + top, 4 + left : 36 + left])
    assert {abs(x) for pair in seen for x in pair} == {0, 1, 2, 3, 4}


def test_a_padded_crop_of_an_image_of_another_size_fits_it_first() -> None:
    rng = np.random.default_rng(0)
    assert random_crop(draw_photograph(0, 0), (64, 64), AugmentConfig(pad=4), rng).shape[0] == 64
