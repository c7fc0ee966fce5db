"""Tiny labelled datasets as real files, in the four layouts, and ways to spoil them. No torch."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

LABELS = ("ground", "disc", "box")
PALETTE = ((90, 90, 90), (220, 40, 40), (40, 40, 220))  # RGB
COLOURS = np.array(PALETTE, dtype=np.uint8)
VOID = 7  # what the masks mark as ignored
SCENE = (40, 56)  # height and width of the segmentation images
TRAIN, VAL = 6, 2  # segmentation images per split
PER_CLASS = 4  # classification images per class and split
CIFAR_LABELS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def write_image(path: Path, image: Image) -> None:
    """Write RGB pixels, or a mask's, in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def draw_scene(seed: int) -> tuple[Image, Image]:
    """An image (40, 56, 3) RGB with a disc and a box, and its mask with a void border."""
    rng = np.random.default_rng(seed)
    mask: Image = np.zeros(SCENE, dtype=np.uint8)
    cv2.circle(mask, (int(rng.integers(10, 22)), int(rng.integers(10, 30))), 8, 1, -1)
    x, y = int(rng.integers(30, 42)), int(rng.integers(4, 24))
    cv2.rectangle(mask, (x, y), (x + 12, y + 14), 2, -1)
    noise = rng.integers(-10, 10, (*SCENE, 3))
    image = (COLOURS[mask].astype(int) + noise).clip(0, 255).astype(np.uint8)
    mask[:2] = VOID
    return image, mask


def write_camvid(root: Path) -> Path:
    """PNG images and PNG index masks in CamVid's layout."""
    for split, count, first in (("train", TRAIN, 0), ("val", VAL, 100)):
        for k in range(count):
            image, mask = draw_scene(first + k)
            write_image(root / split / f"{k:03}.png", image)
            write_image(root / f"{split}annot" / f"{k:03}.png", mask)
    return root


def write_cityscapes(root: Path) -> Path:
    """The same scenes in the layout of Cityscapes, from two cities."""
    for split, count, first in (("train", TRAIN, 0), ("val", VAL, 100)):
        for k in range(count):
            image, mask = draw_scene(first + k)
            city = ("aachen", "bochum")[k % 2]
            stem = f"{city}_{k:06}_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
            labels = root / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png"
            write_image(labels, mask)
    return root


def draw_photograph(label: int, seed: int, size: tuple[int, int] = (44, 60)) -> Image:
    """An image (h, w, 3) RGB in its class's colour, with stripes that depend on the seed."""
    rng = np.random.default_rng(1000 * label + seed)
    image = np.empty((*size, 3), dtype=np.uint8)
    image[:] = COLOURS[label % 3]
    image[:, int(rng.integers(0, 8)) :: 8] //= 2
    noise = rng.integers(-10, 10, image.shape)
    return np.asarray((image.astype(int) + noise).clip(0, 255).astype(np.uint8))


def write_folder(root: Path, labels: Sequence[str] = LABELS) -> Path:
    """JPEG photographs of several sizes, a folder per class."""
    for split, first in (("train", 0), ("val", 100)):
        for label, name in enumerate(labels):
            for k in range(PER_CLASS):
                photograph = draw_photograph(label, first + k, (40 + 4 * k, 64 - 6 * k))
                write_image(root / split / name / f"{k:03}.jpg", photograph)
    return root


def write_cifar(root: Path) -> Path:
    """CIFAR-10's binary version, with four images a file and more classes than three of them."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        records = []
        for k in range(4):
            label = (4 * number + k) % 10
            planes = draw_photograph(label, number, (32, 32)).transpose(2, 0, 1)
            records.append(np.concatenate([[label], planes.ravel()]).astype(np.uint8))
        np.concatenate(records).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join([*CIFAR_LABELS, ""]))
    return root


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


def text(path: Path) -> None:
    path.write_text("not an image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def palette(path: Path) -> None:
    write_png(path, 3, np.zeros(SCENE, dtype=np.uint8), bytes(range(6)))
