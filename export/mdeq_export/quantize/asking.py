"""What is asked of int8: what does not go together, and on which images it is calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.datasets.images import decode, read_whole
from edge_mdeq.errors import ConfigError, DataError, require
from mdeq_export.images import find_images, verification_images
from mdeq_export.profiles import lookup_profile

__all__ = ["Asked", "calibration_images", "calibration_warnings", "check_int8"]

FEWEST = 4  # calibration images in a folder of one's own
BLOWN_UP = 4  # times an image may be enlarged to the input's size, per side


class Asked(Protocol):
    """The settings of an export, as far as int8 is concerned; see ``ExportSettings``."""

    @property
    def iterations(self) -> tuple[int, ...]: ...
    @property
    def batch(self) -> int: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def half(self) -> bool: ...
    @property
    def int8(self) -> bool: ...
    @property
    def refine(self) -> int: ...
    @property
    def score(self) -> object | None: ...


def check_int8(asked: Asked) -> None:
    """Refuse what does not go together with int8.

    Raises:
        ConfigError: with what to leave out.
    """
    if not asked.int8:
        if asked.score is not None:
            raise ConfigError("labelled data judges int8; give --int8, or leave --labelled out")
        return
    if asked.half:
        raise ConfigError("half and int8 exclude each other; give one of them")
    if asked.refine < 0:
        raise ConfigError(f"refine is {asked.refine}, must be 0 or a number of evaluations")
    if asked.refine and asked.refine >= max(asked.iterations):
        raise ConfigError(
            f"refine is {asked.refine}: with at most {max(asked.iterations)} evaluations none "
            "would be left for int8; give more --iterations, or a smaller --refine"
        )
    if asked.batch > 1:
        raise ConfigError(
            f"int8 is calibrated image by image, not in batches of {asked.batch}; use "
            "--dynamic-batch, or leave --int8 out"
        )
    for name in asked.targets:
        if lookup_profile(name).half == "flag":
            raise ConfigError(
                f"{name} has no int8 here: TensorRT 8 reads Q/DQ only under a builder's flag of "
                "its own; leave --int8 out, or use tensorrt-10 or later"
            )


def calibration_warnings(int8: bool, images: Path | None) -> tuple[str, ...]:
    """What every user of an int8 bundle is to know."""
    if not int8 or images is not None:
        return ()
    return (
        "int8 was calibrated on generated pictures; export with --data and a folder of images like "
        "those that the model will see",
    )


def calibration_images(
    folder: Path | None, count: int, height: int, width: int
) -> NDArray[np.uint8]:
    """``count`` images (count, height, width, 3) RGB that lie between those of the verification.

    Raises:
        DataError: too few, all alike, without any content, or much smaller than the input.
    """
    images, source = verification_images(folder, 2 * count, height, width)
    if folder is None:
        return images[1::2]
    if len(images) < FEWEST:
        raise DataError(
            f"{folder} holds {len(images)} images; to calibrate int8 takes at least {FEWEST}, "
            "better a hundred that look like what the model will see"
        )
    flat = images.reshape(len(images), -1)
    if (flat == flat[0]).all():
        raise DataError(
            f"all images of {source} are the same; int8 is calibrated on different ones"
        )
    if (flat.max(axis=1) == flat.min(axis=1)).all():
        raise DataError(
            f"every image of {source} is of one colour; there is nothing to calibrate on"
        )
    cv2 = require("cv2", "export", "reading images")
    first = find_images(folder)[0]
    size = decode(first, read_whole(first), cv2.IMREAD_COLOR).shape[:2]
    if size[0] * BLOWN_UP < height or size[1] * BLOWN_UP < width:
        raise DataError(
            f"{first} is of {size[0]} x {size[1]} pixels, the model takes {height} x {width}: "
            "enlarged so far it is not what the model will see; calibrate on larger images, or "
            "export with a smaller --imgsz"
        )
    return images[1::2] if len(images) >= 2 * FEWEST else images
