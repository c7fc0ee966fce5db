"""A run: epochs of optimizer steps under Fabric, averaged, logged, checkpointed and resumable.

It knows neither equilibria nor tasks: what a step's losses are, and how an epoch is scored, it is
given. Every random number of a step comes from generators that the recipe's seed, the step and
(where ranks must differ) the rank decide. So a resumed run repeats an uninterrupted one bit for
bit, and several ranks take the steps that one process would.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from edge_mdeq.errors import ConfigError, TrainingError, WeightsError
from edge_mdeq.files import make_folder
from edge_mdeq.training.batches import GlobalBatches
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
from edge_mdeq.training.log import RunLog
from edge_mdeq.training.objective import Objective
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.schedule import learning_rate, make_optimizer, set_lr

__all__ = ["Losses", "Progress", "Run", "make_fabric", "open_folder", "seed_step"]

Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, figures)
# A micro-batch's images in 0..1, its targets, the step, and what the objective's loss divides by:
# scalars by name, of which "total" is minimised and "loss" shown.
Losses = Callable[[Tensor, Tensor, int, Tensor], dict[str, Tensor]]

CHECKPOINT = "checkpoint.pt"


class Run:
    """One network on its way through a recipe's epochs.

    Args:
        fabric: from ``make_fabric``.
        network: what is trained, averaged and kept.
        task: the module around it whose forward the losses call; ``network`` itself or a wrapper.
        recipe: optimizer, schedule and batches.
        objective: data and augmentation.
        out: where log and checkpoints go.
        aims: what else a run must share to go on from another's checkpoint; plain numbers.

    Attributes:
        task: ``task`` as Fabric set it up: call this one in the losses.
        average: the exponential average of ``network`` so far.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: nn.Module,
        task: nn.Module,
        recipe: Recipe,
        objective: Objective,
        out: Path,
        aims: dict[str, Any] | None = None,
    ) -> None:
        self.fabric, self.network, self.recipe, self.out = fabric, network, recipe, out
        self.aims = aims or {}
        self.averaged = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(recipe.optim.ema_decay), use_buffers=True
        )
        self.task: Any
        self.optimizer: Any
        self.task, self.optimizer = fabric.setup(task, make_optimizer(network, recipe.optim))
        self.objective, self.data = objective, objective.train_set
        self.order = global_batches(recipe, len(self.data), fabric)
        self.loader: DataLoader[Any] = DataLoader(
            self.data, batch_sampler=self.order, num_workers=recipe.data.workers
        )
        self.augment = objective.augmentation()
        self.epoch_steps = len(self.order) // recipe.optim.accumulate
        self.epoch, self.step, self.seconds = 0, 0, 0.0

    @property
    def average(self) -> Any:
        """The averaged network."""
        return self.averaged.module

    def restore(self) -> None:
        """Go on from the checkpoint in ``out``.

        Raises:
            WeightsError: there is none, it is unreadable, or of another run.
        """
        path = self.out / CHECKPOINT
        state = load_checkpoint(path)
        try:
            same_aims(state.get("aims", self.aims), self.aims)
            self.network.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["average"])
            same_kind(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            if self.step != self.epoch * self.epoch_steps:
                raise ValueError(f"{self.step} steps are not {self.epoch} epochs of this data")
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{path} is of a run with another aim, model, optimizer, batch or data ({error}); "
                "resume with what it was started with, or start anew in another folder"
            ) from error

    def save(self) -> None:
        """Write the checkpoint; only rank 0 does.

        Raises:
            WeightsError: it cannot be written; the last one survives.
        """
        if self.fabric.global_rank == 0:
            state = {
                "model": self.network.state_dict(),
                "average": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds,
                "aims": self.aims,
            }
            save_checkpoint(self.out / CHECKPOINT, state)

    def go(
        self,
        losses: Losses,
        score: Callable[[], dict[str, float]],
        progress: Progress = lambda done, total, figures: None,
    ) -> None:
        """Train until the recipe's epochs are done.

        Args:
            losses: of one micro-batch.
            score: validation figures of ``average``, asked for as the recipe says.
            progress: called after every step and validation.
        """
        log = RunLog(self.out if self.fabric.global_rank == 0 else None, self.epoch, self.step)
        try:
            while self.epoch < self.recipe.epochs:
                self.train_epoch(losses, score, progress, log)
        finally:
            log.close()

    def train_epoch(
        self,
        losses: Losses,
        score: Callable[[], dict[str, float]],
        progress: Progress,
        log: RunLog,
    ) -> None:
        """One epoch: its steps, validation if it is due, log and checkpoint.

        Raises:
            TrainingError: loss or weights became NaN or infinite; the last checkpoint stays.
        """
        recipe, total = self.recipe, self.recipe.epochs * self.epoch_steps
        started = time.monotonic()
        self.task.train()
        if recipe.optim.freeze_norm:
            freeze_norms(self.network)
        self.order.epoch = self.data.epoch = self.epoch
        micro_batches = iter(self.loader)
        sums: dict[str, float] = {}
        for _ in range(self.epoch_steps):
            figures = self.train_step(losses, micro_batches)
            log.step(self.step, figures)
            progress(self.step, total, {"epoch": self.epoch + 1, **figures})
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value / self.epoch_steps
        if not all(bool(x.isfinite().all()) for x in self.network.state_dict().values()):
            raise self.diverged("weights are NaN or infinite")
        self.epoch += 1
        self.seconds += time.monotonic() - started
        entry: dict[str, Any] = {
            "epoch": self.epoch, "step": self.step, "seconds": round(self.seconds, 1), **sums,
        }  # fmt: skip
        if self.epoch % recipe.validation.every == 0 or self.epoch == recipe.epochs:
            found = score()
            entry |= found
            progress(self.step, total, {"epoch": self.epoch, **found})
        log.epoch(self.step, entry)
        self.save()

    def train_step(self, losses: Losses, micro_batches: Iterator[Any]) -> dict[str, float]:
        """One optimizer step; its figures, averaged over micro-batches and ranks.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        fabric, optim, seed = self.fabric, self.recipe.optim, self.recipe.seed
        lr = learning_rate(self.recipe, self.step, self.epoch_steps)
        set_lr(self.optimizer, lr)
        batches = [self.prepare(next(micro_batches), micro) for micro in range(optim.accumulate)]
        counts = torch.stack([self.objective.count(target) for _, target in batches])
        count: Any = fabric.all_reduce(counts.mean(), reduce_op="mean")
        sums: dict[str, Tensor] = {}
        for micro, (image, target) in enumerate(batches):
            seed_step(seed, self.step, micro, fabric.global_rank)
            with fabric.no_backward_sync(self.task, enabled=micro < optim.accumulate - 1):
                found = losses(image, target, self.step, count)
                fabric.backward(found["total"] / optim.accumulate)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / optim.accumulate
        if optim.clip_norm:
            fabric.clip_gradients(
                self.task, self.optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.network)
        self.step += 1
        reduced: Any = fabric.all_reduce(sums, reduce_op="mean")
        figures = {name: float(value) for name, value in reduced.items()}
        minimised = figures.pop("total")
        if not math.isfinite(minimised):
            raise self.diverged(f"loss was {minimised}")
        return figures | {"lr": lr}

    def prepare(self, batch: tuple[Tensor, Tensor], micro: int) -> tuple[Tensor, Tensor]:
        """A micro-batch on the device, augmented as the whole step's random numbers say."""
        fabric = self.fabric
        image, target = (value.to(fabric.device) for value in batch)
        seed_step(self.recipe.seed, self.step)  # alike for all micro-batches and ranks
        share = micro * fabric.world_size + fabric.global_rank
        prepared: tuple[Tensor, Tensor] = self.augment(
            image, target, share, fabric.world_size * self.recipe.optim.accumulate
        )
        return prepared

    def diverged(self, what: str) -> TrainingError:
        """The error of a run that is worth nothing any more."""
        kept = self.out / CHECKPOINT
        state = f"{kept} is as it was" if kept.exists() else "no epoch was finished"
        return TrainingError(
            f"training diverged: the {what} at step {self.step} (epoch {self.epoch + 1}); {state}. "
            "Try a smaller optim.lr, a longer optim.warmup_steps, a smaller optim.clip_norm or "
            "another precision, then go on with --resume"
        )


def open_folder(out: Path, resume: bool) -> None:
    """Make the folder of a run.

    Raises:
        ConfigError: it cannot be made, or holds a run that is not to be resumed.
    """
    if (out / CHECKPOINT).exists() and not resume:
        raise ConfigError(
            f"{out} already holds a run ({CHECKPOINT}); go on with --resume, or choose another "
            "folder"
        )
    try:
        make_folder(out)
        for half in out.glob(f".{CHECKPOINT}.*"):  # what a run that was killed was writing
            half.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out}: {error.strerror}") from error


def make_fabric(devices: int | None, precision: str) -> Fabric:
    """Fabric on ``devices`` processes, or on those that torchrun started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator="auto",
        devices=devices or local,
        num_nodes=max(1, world // local),
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def global_batches(recipe: Recipe, length: int, fabric: Fabric) -> GlobalBatches:
    """Which images this rank takes when.

    Raises:
        ConfigError: the batch is larger than the data, or does not divide among the ranks.
    """
    optim, world = recipe.optim, fabric.world_size
    if optim.batch > length:
        raise ConfigError(f"optim.batch {optim.batch} exceeds the {length} images")
    if optim.batch % (optim.accumulate * world):
        raise ConfigError(
            f"optim.batch {optim.batch} does not divide into {optim.accumulate} micro-batches on "
            f"{world} ranks; choose a multiple of {optim.accumulate * world}"
        )
    rank = fabric.global_rank
    return GlobalBatches(length, optim.batch, optim.accumulate, recipe.seed, rank, world)


def same_aims(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise ValueError if a run was started for something else."""
    other = [f"{name} {theirs.get(name)}" for name in ours if theirs.get(name) != ours[name]]
    if other:
        raise ValueError(f"it was started with {', '.join(other)}")


def same_kind(state: dict[str, Any], optimizer: Any) -> None:
    """Raise ValueError unless ``state`` is of such an optimizer; torch would notice too late."""
    theirs, ours = set(state["param_groups"][0]), set(optimizer.param_groups[0])
    if theirs != ours:
        raise ValueError(f"its optimizer has other settings: {', '.join(sorted(theirs ^ ours))}")


def seed_step(seed: int, step: int, micro: int = 0, rank: int = -1) -> None:
    """Seed torch's generators for one micro-batch of one step; ``rank`` -1 is for all ranks."""
    mixed = 0
    for number in (seed, step, micro, rank + 1):  # near numbers must not give near seeds
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**63
    torch.manual_seed(mixed)


def freeze_norms(network: nn.Module) -> None:
    """Batch norms use and keep the statistics they have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
