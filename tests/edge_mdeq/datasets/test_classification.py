"""Images with one label each: what an item is, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_data import (
    CIFAR_LABELS,
    LABELS,
    PER_CLASS,
    cut,
    draw_photograph,
    empty,
    text,
    write_image,
)

from edge_mdeq.datasets import Cifar10, ImageFolder
from edge_mdeq.errors import DataError

SIZE = (32, 32)
Spoil = Callable[[Path], None]


# A folder per class


def open_folder(data: Path, split: str = "train", cache: bool = True) -> ImageFolder:
    return ImageFolder(data, split, 3, LABELS, SIZE, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_a_folder_is_a_class(folder: Path, cache: bool) -> None:
    data = open_folder(folder, cache=cache)
    assert len(data) == 3 * PER_CLASS
    for index in range(len(data)):
        image, label = data[index]
        assert (image.shape, image.dtype) == ((3, *SIZE), np.uint8)
        assert label == index // PER_CLASS
        strongest = image.mean(axis=(1, 2)).argmax()  # discs are red and boxes blue
        assert label == 0 or strongest == (0 if label == 1 else 2)
    np.testing.assert_allclose(data.frequencies(), 1 / 3)


def test_labels_that_are_not_given_are_the_sorted_folders(folder: Path) -> None:
    data = ImageFolder(folder, "train", 3, (), SIZE)
    assert data.labels == ("box", "disc", "ground")
    assert data.targets == [label for label in range(3) for _ in range(PER_CLASS)]


def test_the_validation_folder_has_either_name(folder: Path) -> None:
    expected = open_folder(folder, "val")[0][0]
    (folder / "val").rename(folder / "validation")
    np.testing.assert_array_equal(open_folder(folder, "val")[0][0], expected)


def test_without_augmentation_the_centre_is_taken(folder: Path) -> None:
    whole = ImageFolder(folder, "val", 3, LABELS, (64, 64), fit="crop")
    centre = ImageFolder(folder, "val", 3, LABELS, (32, 32), fit="crop", centre=0.5)
    np.testing.assert_array_equal(centre[5][0], whole[5][0][:, 16:48, 16:48])


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
        np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)


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
