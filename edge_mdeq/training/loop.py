"""Training an equilibrium model by a recipe: from a dataset folder to weights with their card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from edge_mdeq.config import ModelCard
from edge_mdeq.files import write_atomic
from edge_mdeq.model import MDEQ
from edge_mdeq.training.equilibrium import EquilibriumTask
from edge_mdeq.training.evaluate import spectral_radii
from edge_mdeq.training.log import writing
from edge_mdeq.training.objective import Objective, make_objective
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.run import Progress, Run, make_fabric, open_folder, seed_step
from edge_mdeq.training.schedule import draw_plan
from edge_mdeq.training.transfer import transfer
from edge_mdeq.weights import save_weights

__all__ = ["train"]


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
        DataError, ConfigError, WeightsError: bad input; nothing was trained.
        TrainingError: the loss is NaN or infinite, or the disk full; ``out/checkpoint.pt`` is that
            of the last epoch that went well.
    """
    open_folder(out, resume)
    objective = make_objective(recipe, data)
    recipe = replace(recipe, data=replace(recipe.data, labels=objective.labels))
    fabric = make_fabric(devices, precision)
    seed_step(recipe.seed, 0)
    model = MDEQ(recipe.model)
    if init is not None and not resume:
        transfer(init, model)
    model = model.to(fabric.device)
    run = Run(fabric, model, EquilibriumTask(model, recipe), recipe, objective, out)
    if resume:
        run.restore()

    def losses(image: Tensor, target: Tensor, step: int, count: Tensor) -> dict[str, Tensor]:
        plan = draw_plan(recipe, step, run.epoch_steps)
        logits, penalty, residual = run.task(image, plan)
        loss = objective.loss(logits.float(), target, count)
        total = loss + plan.penalty * penalty
        return {"total": total, "loss": loss, "jacobian": penalty, "residual": residual}

    run.go(losses, lambda: validate(run.average, objective, recipe), progress)
    # All ranks score, though one writes: waiting for so long, they would give up.
    metrics = objective.curve(run.average, recipe.validation.curve)
    path = out / "weights.safetensors"
    if fabric.global_rank == 0:
        write(run.average, recipe, metrics, path)
    fabric.barrier()
    return path


def validate(model: MDEQ, objective: Objective, recipe: Recipe) -> dict[str, float]:
    """The validation figures of an epoch."""
    figures = objective.score(model, recipe.validation.evaluations)
    count = min(recipe.validation.spectral_images, len(objective.val_set))
    if count:
        radii = spectral_radii(model, [objective.val_set[i][0] for i in range(count)], recipe.input)
        figures |= {"spectral_radius": float(radii.mean()), "spectral_worst": float(radii.max())}
    return figures


def write(model: MDEQ, recipe: Recipe, metrics: dict[str, float], path: Path) -> None:
    """The final weights with their card, and the unrounded metrics beside them."""
    card = ModelCard(
        model=recipe.model,
        input=recipe.input,
        labels=recipe.data.labels,
        palette=recipe.data.palette,
        provenance=recipe.provenance,
        metrics={name: round(value, 4) for name, value in metrics.items()},
    )
    save_weights(model, card, path)
    with writing(path.parent):
        write_atomic(path.with_name("metrics.json"), json.dumps(metrics, indent=2).encode())
