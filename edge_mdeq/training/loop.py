"""The training loop: epochs, averaging, validation, checkpoints, and the weights at the end.

Every random number of a step is drawn from generators that the recipe's seed, the step and (where
ranks must differ) the rank decide. So a resumed run repeats an uninterrupted one bit for bit, and
several ranks take the steps that one process would.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from edge_mdeq.config import ModelCard
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.files import write_atomic
from edge_mdeq.model import MDEQ
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
from edge_mdeq.training.datasets.batches import GlobalBatches
from edge_mdeq.training.equilibrium import EquilibriumTask
from edge_mdeq.training.evaluate import spectral_radii
from edge_mdeq.training.objective import Objective, make_objective
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.schedule import Plan, draw_plan, learning_rate, make_optimizer, set_lr
from edge_mdeq.training.transfer import transfer
from edge_mdeq.weights import save_weights

__all__ = ["Progress", "batches", "seed_step", "train"]

Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, figures)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    resume: bool = False,
    devices: int | None = None,
    precision: str = "32-true",
    progress: Progress = lambda done, total, figures: None,
    init: Path | None = None,
) -> Path:
    """Run ``recipe`` on the dataset folder ``data``.

    ``out`` receives ``checkpoint.pt``, ``log.jsonl`` and TensorBoard's files after every epoch, and
    in the end ``weights.safetensors`` with ``weights.json``. The last averaged weights are kept: no
    epoch is picked by its validation score.

    Args:
        recipe: everything else that decides the outcome.
        data: a folder in the layout that the recipe names.
        out: created if needed.
        resume: go on from ``out/checkpoint.pt``; without it, a folder with one is refused.
        devices: how many devices (processes) to train on; None: as torchrun says, else one.
        precision: as Lightning Fabric names it, such as "32-true" or "bf16-mixed".
        progress: called after every step.
        init: weights to start from; see ``transfer``.

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
    objective = make_objective(recipe, data)
    recipe = replace(recipe, data=replace(recipe.data, labels=objective.labels))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out}: {error.strerror}") from error

    fabric = make_fabric(out, devices, precision)
    seed_step(recipe.seed, 0)
    model = MDEQ(recipe.model)
    if init is not None and not resume:
        transfer(init, model)
    model = model.to(fabric.device)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema_decay), use_buffers=True
    )
    task, optimizer = fabric.setup(
        EquilibriumTask(model, recipe), make_optimizer(model, recipe.optim)
    )
    loader, order = batches(recipe, objective.train_set, fabric.global_rank, fabric.world_size)
    augment = objective.augmentation(fabric.global_rank, fabric.world_size)
    weights = objective.class_weights()
    weights = None if weights is None else weights.to(fabric.device)
    epoch_steps = len(order) // recipe.optim.accumulate
    total = recipe.epochs * epoch_steps

    epoch, step, elapsed = 0, 0, 0.0
    if resume:
        epoch, step, elapsed = restore(checkpoint, model, average, optimizer)
    log = RunLog(fabric, out, epoch)

    while epoch < recipe.epochs:
        started = time.monotonic()
        task.train()
        if recipe.optim.freeze_norm:
            freeze_norms(model)
        order.epoch = objective.train_set.epoch = epoch
        micro_batches = iter(loader)
        sums: dict[str, float] = {}
        for _ in range(epoch_steps):
            lr = learning_rate(recipe, step, epoch_steps)
            set_lr(optimizer, lr)
            plan = draw_plan(recipe, step, epoch_steps)
            figures = train_step(
                fabric, task, optimizer, objective, augment, recipe, plan, step, micro_batches,
                weights,
            )  # fmt: skip
            average.update_parameters(model)
            step += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value / epoch_steps
            log.step(step, figures | {"lr": lr})
            progress(step, total, {"epoch": epoch + 1, **figures})
        epoch += 1
        elapsed += time.monotonic() - started
        entry: dict[str, Any] = {"epoch": epoch, "step": step, "seconds": round(elapsed, 1), **sums}
        if epoch % recipe.validation.every == 0 or epoch == recipe.epochs:
            entry |= validate(averaged(average), objective, recipe)
            progress(step, total, {"epoch": epoch, "score": entry[objective.headline]})
        log.epoch(step, entry)
        if fabric.global_rank == 0:
            save_checkpoint(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "step": step,
                    "seconds": elapsed,
                },
            )
    log.close()
    path = out / "weights.safetensors"
    if fabric.global_rank == 0:
        finish(averaged(average), recipe, objective, path)
    fabric.barrier()
    return path


def make_fabric(out: Path, devices: int | None, precision: str) -> Fabric:
    """Fabric on ``devices`` processes, or on those that torchrun started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator="auto",
        devices=devices or local,
        num_nodes=max(1, world // local),
        precision=precision,  # type: ignore[arg-type]
        loggers=TensorBoardLogger(out, name="tensorboard", version=""),
    )
    fabric.launch()
    return fabric


def batches(recipe: Recipe, data: Any, rank: int, world: int) -> tuple[DataLoader[Any], Any]:
    """The loader of this rank's micro-batches, and the order it follows (set its ``epoch``).

    Raises:
        ConfigError: the batch is larger than the data, or does not divide among the ranks.
    """
    optim = recipe.optim
    if optim.batch > len(data):
        raise ConfigError(f"optim.batch {optim.batch} exceeds the {len(data)} images")
    if optim.batch % (optim.accumulate * world):
        raise ConfigError(
            f"optim.batch {optim.batch} does not divide into {optim.accumulate} micro-batches on "
            f"{world} ranks; choose a multiple of {optim.accumulate * world}"
        )
    order = GlobalBatches(len(data), optim.batch, optim.accumulate, recipe.seed, rank, world)
    return DataLoader(data, batch_sampler=order, num_workers=recipe.data.workers), order


def train_step(
    fabric: Fabric,
    task: Any,
    optimizer: Any,
    objective: Objective,
    augment: nn.Module,
    recipe: Recipe,
    plan: Plan,
    step: int,
    micro_batches: Any,
    weights: Tensor | None,
) -> dict[str, float]:
    """One optimizer step; returns what is worth watching, averaged over micro-batches."""
    count = recipe.optim.accumulate
    sums: dict[str, Tensor] = {}
    for micro in range(count):
        image, target = (value.to(fabric.device) for value in next(micro_batches))
        seed_step(recipe.seed, step, micro)  # alike on all ranks: they draw for the whole batch
        image, target = augment(image, target)
        seed_step(recipe.seed, step, micro, fabric.global_rank)
        with fabric.no_backward_sync(task, enabled=micro < count - 1):
            logits, penalty, residual = task(image, plan)
            loss = objective.loss(logits.float(), target, weights)
            fabric.backward((loss + plan.penalty * penalty) / count)
        for name, value in (("loss", loss), ("jacobian", penalty), ("residual", residual)):
            sums[name] = sums.get(name, 0.0) + value.detach() / count
    if recipe.optim.clip_norm:
        fabric.clip_gradients(
            task, optimizer, max_norm=recipe.optim.clip_norm, error_if_nonfinite=False
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    figures: dict[str, Tensor] = fabric.all_reduce(sums, reduce_op="mean")  # type: ignore[assignment]
    return {name: float(value) for name, value in figures.items()}


def seed_step(seed: int, step: int, micro: int = 0, rank: int = -1) -> None:
    """Seed torch's generators for one micro-batch of one step; ``rank`` -1 is for all ranks."""
    numbers = [seed, step, micro, rank + 1]
    mixed = 0
    for number in numbers:  # a multiplicative hash: near numbers must not give near seeds
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**63
    torch.manual_seed(mixed)


def freeze_norms(model: nn.Module) -> None:
    """Batch norms use and keep the statistics they have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def averaged(average: AveragedModel) -> MDEQ:
    """The model inside ``average``."""
    assert isinstance(average.module, MDEQ)
    return average.module


def restore(
    checkpoint: Path, model: MDEQ, average: AveragedModel, optimizer: Any
) -> tuple[int, int, float]:
    """Load a checkpoint into its owners; epoch, step and seconds so far."""
    state = load_checkpoint(checkpoint)
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        return state["epoch"], state["step"], state["seconds"]
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"{checkpoint} is of a run with another model ({error})") from error


def validate(model: MDEQ, objective: Objective, recipe: Recipe) -> dict[str, float]:
    """The validation figures of an epoch."""
    figures = objective.score(model, recipe.validation.evaluations)
    count = min(recipe.validation.spectral_images, len(objective.val_set))
    if count:
        radii = spectral_radii(model, [objective.val_set[i][0] for i in range(count)], recipe.input)
        figures |= {"spectral_radius": float(radii.mean()), "spectral_worst": float(radii.max())}
    return figures


def finish(model: MDEQ, recipe: Recipe, objective: Objective, path: Path) -> None:
    """Score the final weights at every count and write them with their card."""
    metrics = objective.curve(model, recipe.validation.curve)
    card = ModelCard(
        model=recipe.model,
        input=recipe.input,
        labels=recipe.data.labels,
        palette=recipe.data.palette,
        provenance=recipe.provenance,
        metrics={name: round(value, 4) for name, value in metrics.items()},
    )
    save_weights(model, card, path)
    write_atomic(path.with_name("metrics.json"), json.dumps(metrics, indent=2).encode())


class RunLog:
    """``log.jsonl`` with a line per epoch, and the same for TensorBoard with every step's figures.

    Only rank 0 writes. Entries of epochs that a resumed run does again are dropped first.
    """

    def __init__(self, fabric: Fabric, out: Path, epochs_done: int) -> None:
        self.fabric = fabric
        self.path = out / "log.jsonl"
        if fabric.global_rank == 0 and self.path.exists():
            lines = self.path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["epoch"] <= epochs_done]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())

    def step(self, step: int, figures: dict[str, float]) -> None:
        self.fabric.log_dict({f"train/{name}": value for name, value in figures.items()}, step)

    def epoch(self, step: int, entry: dict[str, Any]) -> None:
        self.fabric.log_dict({f"epoch/{name}": value for name, value in entry.items()}, step)
        if self.fabric.global_rank == 0:
            with self.path.open("a") as log:
                log.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        for logger in self.fabric.loggers:
            logger.finalize("success")
