"""The training loop: epochs, averaging, validation, checkpoints, and the weights at the end."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from edge_mdeq.config import ModelCard
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.files import write_atomic
from edge_mdeq.model import MDEQ
from edge_mdeq.training.augment import Augment
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
from edge_mdeq.training.data import SegmentationFolder, class_frequencies
from edge_mdeq.training.evaluate import curve, evaluate
from edge_mdeq.training.recipe import LossConfig, OptimConfig, Recipe
from edge_mdeq.training.task import EquilibriumTask, Plan, segmentation_loss
from edge_mdeq.weights import save_weights

__all__ = ["Progress", "train"]

Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, figures)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    resume: bool = False,
    devices: int = 1,
    precision: str = "32-true",
    progress: Progress = lambda done, total, figures: None,
) -> Path:
    """Run ``recipe`` on the dataset folder ``data``.

    ``out`` receives ``checkpoint.pt`` and ``log.jsonl`` after every epoch, and in the end
    ``weights.safetensors`` with ``weights.json``. The last averaged weights are kept: no epoch is
    picked by its validation score.

    Args:
        recipe: everything else that decides the outcome.
        data: a folder in the CamVid layout.
        out: created if needed.
        resume: go on from ``out/checkpoint.pt``; without it, a folder with one is refused.
        devices: how many devices (processes) to train on.
        precision: as Lightning Fabric names it, such as "32-true" or "bf16-mixed".
        progress: called after every step.

    Returns:
        The path of the weights.

    Raises:
        DataError, ConfigError, WeightsError: see what they say.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise ConfigError(
            f"{out} already holds a run ({checkpoint.name}); go on with --resume, or choose "
            "another --out"
        )
    size = (recipe.input.height, recipe.input.width)
    classes, ignore = recipe.model.classes, recipe.data.ignore
    train_set = SegmentationFolder(data, "train", classes, ignore)
    val_set = SegmentationFolder(data, "val", classes, ignore, size)
    same_size(train_set)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out}: {error.strerror}") from error

    fabric = Fabric(accelerator="auto", devices=devices, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    seed_everything(recipe.seed)
    model = MDEQ(recipe.model).to(fabric.device)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema_decay), use_buffers=True
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.optim), lr=recipe.optim.lr)
    task, optimizer = fabric.setup(EquilibriumTask(model, recipe), optimizer)
    shuffle = torch.Generator()
    loader = fabric.setup_dataloaders(
        DataLoader(train_set, recipe.optim.batch, shuffle=True, drop_last=True, generator=shuffle)
    )
    if not len(loader):
        raise ConfigError(f"optim.batch {recipe.optim.batch} exceeds the {len(train_set)} images")
    augment = Augment(recipe.augment, size)
    weights = class_weights(recipe.loss, train_set, classes, fabric.device)
    total = recipe.epochs * len(loader)

    epoch, step, elapsed = 0, 0, 0.0
    if resume:
        state = load_checkpoint(checkpoint)
        try:
            model.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{checkpoint} is of a run with another model ({error})") from error
        restore_random(state["random"])
        epoch, step, elapsed = state["epoch"], state["step"], state["seconds"]

    while epoch < recipe.epochs:
        started = time.monotonic()
        task.train()
        shuffle.manual_seed(recipe.seed + epoch)
        sums: dict[str, float] = {}
        for image, mask in loader:
            set_lr(optimizer, learning_rate(recipe, step, len(loader)))
            figures = train_step(
                fabric, task, optimizer, augment, recipe, epoch, image, mask, weights
            )
            average.update_parameters(model)
            step += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value / len(loader)
            progress(step, total, {"epoch": epoch + 1, **figures})
        epoch += 1
        elapsed += time.monotonic() - started
        entry: dict[str, Any] = {"epoch": epoch, "step": step, "seconds": round(elapsed, 1), **sums}
        if epoch % recipe.validation.every == 0 or epoch == recipe.epochs:
            score = evaluate(
                averaged(average), val_set, recipe.input, recipe.validation.evaluations
            )
            entry |= {"miou": score.miou, "val_residual": score.residual}
            progress(step, total, {"epoch": epoch, "miou": score.miou})
        if fabric.global_rank == 0:
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            save_checkpoint(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": random_state(),
                    "epoch": epoch,
                    "step": step,
                    "seconds": elapsed,
                },
            )
    return finish(averaged(average), recipe, val_set, out)


def averaged(average: AveragedModel) -> MDEQ:
    """The model inside ``average``."""
    assert isinstance(average.module, MDEQ)
    return average.module


def finish(model: MDEQ, recipe: Recipe, val_set: SegmentationFolder, out: Path) -> Path:
    """Score the final weights at every count and write them with their card."""
    metrics = curve(model, val_set, recipe.input, recipe.validation.curve)
    card = ModelCard(
        model=recipe.model,
        input=recipe.input,
        labels=recipe.data.labels,
        palette=recipe.data.palette,
        provenance=recipe.provenance,
        metrics={name: round(value, 4) for name, value in metrics.items()},
    )
    path = out / "weights.safetensors"
    save_weights(model, card, path)
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=2).encode())
    return path


def train_step(
    fabric: Fabric,
    task: Any,
    optimizer: Any,
    augment: Augment,
    recipe: Recipe,
    epoch: int,
    image: Tensor,
    mask: Tensor,
    weights: Tensor | None,
) -> dict[str, float]:
    """One optimizer step on one batch; returns what is worth watching."""
    plan = draw_plan(recipe, epoch)
    image, target = augment(image, mask)
    logits, penalty, residual = task(image, plan)
    loss = segmentation_loss(logits.float(), target, weights, recipe.loss)
    fabric.backward(loss + recipe.jacobian.weight * penalty)
    fabric.clip_gradients(
        task, optimizer, max_norm=recipe.optim.clip_norm, error_if_nonfinite=False
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    figures = {"loss": loss, "jacobian": penalty, "residual": residual}
    return {name: float(value.detach()) for name, value in figures.items()}


def draw_plan(recipe: Recipe, epoch: int) -> Plan:
    """What this step does; drawn from Python's generator, whose state the checkpoint holds."""
    solver = recipe.solver
    if epoch < solver.unrolled_epochs:
        return Plan(True, solver.unrolled_steps, False)
    finishing = epoch >= recipe.optim.epochs
    frequency = recipe.finish.jacobian_frequency if finishing else recipe.jacobian.frequency
    evaluations = recipe.finish.evaluations if finishing else solver.evaluations
    penalise = recipe.jacobian.weight > 0 and random.random() < frequency
    return Plan(False, random.randint(*evaluations), penalise)


def parameter_groups(model: MDEQ, config: OptimConfig) -> list[dict[str, Any]]:
    """Kernels decay; gains, biases and norms (one dimension, or weight norm's gain) do not."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        flat = parameter.ndim <= 1 or name.endswith(".gain")
        (plain if flat else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def learning_rate(recipe: Recipe, step: int, epoch_steps: int) -> float:
    """Linear warm-up, then a half cosine to zero; the last phase has a half cosine of its own."""
    config, main = recipe.optim, recipe.optim.epochs * epoch_steps
    if step < main:
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / main))
    done = (step - main) / (recipe.finish.epochs * epoch_steps)
    return recipe.finish.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: Any, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def class_weights(
    config: LossConfig, data: SegmentationFolder, classes: int, device: torch.device
) -> Tensor | None:
    """(classes,) for the cross entropy, with mean 1 over the pixels, or None."""
    if config.class_weights == "none":
        return None
    frequency = class_frequencies(data, classes)
    weights = 1 / np.sqrt(frequency)
    weights /= (weights * frequency).sum()
    return torch.tensor(weights, dtype=torch.float32, device=device)


def same_size(data: SegmentationFolder) -> None:
    """Raise ConfigError unless all images have one size: they are stacked to batches."""
    first = data.items[0][0].shape
    for path, (image, _) in zip(data.paths, data.items, strict=True):
        if image.shape != first:
            raise ConfigError(
                f"{path} is {image.shape[:2]}, {data.paths[0].name} is {first[:2]}; training "
                "needs images of one size"
            )


def seed_everything(seed: int) -> None:
    """Seed all generators that training draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of Python's and torch's generators, in types that load without pickle."""
    version, internal, gauss = random.getstate()
    return {"python": [version, list(internal), gauss], "torch": torch.get_rng_state()}


def restore_random(state: dict[str, Any]) -> None:
    """The reverse of ``random_state``."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
