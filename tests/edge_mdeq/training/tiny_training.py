"""Tiny recipes, tiny datasets as real files, and what several files here ask of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edge_mdeq.config import InputConfig, ModelConfig, Provenance
from edge_mdeq.training.recipe import (
    AugmentConfig,
    DataConfig,
    GradientConfig,
    JacobianConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    SolverConfig,
    ValidationConfig,
)

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

SEGMENTER = Recipe(
    model=ModelConfig(task="segmentation", classes=3, channels=(8, 16), expansion=2),
    input=InputConfig(32, 32),
    data=DataConfig(labels=LABELS, palette=PALETTE, ignore=(VOID,)),
    optim=OptimConfig(epochs=3, batch=2, lr=1e-2, warmup_steps=1, ema_decay=0.5),
    solver=SolverConfig(pretrain_steps=3, pretrain_evaluations=2, evaluations=(2, 3)),
    gradient=GradientConfig(steps=2),
    jacobian=JacobianConfig(weight=0.1, frequency=0.5),
    augment=AugmentConfig(scale=(0.7, 1.0)),
    validation=ValidationConfig(every=2, evaluations=2, curve=(1, 2)),
    provenance=Provenance(name="tiny", licence="CC0-1.0"),
)
CLASSIFIER = Recipe(
    model=ModelConfig(
        task="classification",
        classes=3,
        channels=(8, 16),
        expansion=2,
        downsample_times=1,
        head_channels=(4, 8),
        final_channels=16,
        norm_momentum=0.3,  # a run has few steps
    ),
    input=InputConfig(32, 32),
    data=DataConfig(layout="folder"),
    optim=OptimConfig(epochs=3, batch=4, lr=1e-2, warmup_steps=1, ema_decay=0.5),
    solver=SolverConfig(pretrain_steps=3, pretrain_evaluations=2, evaluations=(2, 3)),
    gradient=GradientConfig(steps=2),
    jacobian=JacobianConfig(weight=0.1, frequency=0.5),
    loss=LossConfig(class_weights="none", lovasz=0.0, label_smoothing=0.1),
    augment=AugmentConfig(scale=(0.5, 1.0), ratio=(0.8, 1.25)),
    validation=ValidationConfig(every=2, evaluations=2, curve=(1, 2)),
    provenance=Provenance(name="tiny", licence="CC0-1.0"),
)
EPOCH_STEPS = 3  # of either recipe on its dataset below


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


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """The recipe as TOML, whose numbers, strings and lists are written as JSON's are."""
    lines = []
    sections = asdict(recipe)
    lines.append(f"seed = {sections.pop('seed')}")
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    path.write_text("\n".join(lines))
    return path


def log_of(out: Path) -> list[dict[str, float]]:
    """The log's entries, without how long they took."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def scalars(out: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard would show under ``tag``: (step, value)."""
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two safetensors files hold the very same tensors."""
    first, second = load_file(a), load_file(b)
    assert list(first) == list(second)
    return all(torch.equal(first[key], second[key]) for key in first)


def command(*arguments: str | Path) -> list[str]:
    """``edge-mdeq`` with ``arguments``, by this interpreter."""
    return [sys.executable, "-m", "edge_mdeq.cli", *map(str, arguments)]


def run_command(
    *arguments: str | Path, launcher: Sequence[str] = (), timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``edge-mdeq`` as a user would, behind ``launcher`` if given."""
    argv = [*launcher, *command(*arguments)]
    return subprocess.run(
        argv, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def environment(**extra: str) -> Mapping[str, str]:
    """One thread, so that sums come out alike here and there; and no terminal's width."""
    env: dict[str, Any] = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return env | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"} | extra
