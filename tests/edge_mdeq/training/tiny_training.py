"""Tiny recipes, and what several files here ask of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_data import LABELS, PALETTE, VOID

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
