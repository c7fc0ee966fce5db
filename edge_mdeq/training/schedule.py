"""What changes over a run: learning rate, solver counts, regularisation.

Pure functions of the step, so that a resumed run and every rank see the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edge_mdeq.training.muon import Muon
from edge_mdeq.training.recipe import JacobianConfig, OptimConfig, Recipe

__all__ = ["Plan", "draw_plan", "learning_rate", "make_optimizer", "set_lr"]


class Plan(NamedTuple):
    """What one training step does. A tuple, as Fabric walks through a forward's arguments.

    Attributes:
        unrolled: whether the iteration is simply tracked instead of solved.
        evaluations: of f before the gradient's own.
        penalty: weight of the Jacobian penalty, 0 for none.
    """

    unrolled: bool
    evaluations: int
    penalty: float


def draw_plan(recipe: Recipe, step: int, epoch_steps: int) -> Plan:
    """The plan of optimizer step ``step``; drawn from a generator that seed and step decide."""
    rng = random.Random(f"{recipe.seed}-{step}")
    solver, jacobian, finish = recipe.solver, recipe.jacobian, recipe.finish
    epoch = step // epoch_steps
    unrolled = step < solver.pretrain_steps
    finishing = epoch >= recipe.optim.epochs
    frequency = finish.jacobian_frequency if finishing else jacobian.frequency
    weight = penalty_weight(jacobian, step - solver.pretrain_steps, epoch)
    penalise = weight > 0 and rng.random() < frequency
    evaluations = rng.randint(*(finish.evaluations if finishing else solver.evaluations))
    if penalise and not finishing:
        evaluations += rng.randint(*jacobian.jitter)
    if unrolled:
        evaluations = solver.pretrain_evaluations
    return Plan(unrolled, evaluations, weight if penalise else 0.0)


def penalty_weight(config: JacobianConfig, solved: int, epoch: int) -> float:
    """The weight of the Jacobian penalty (arXiv:2106.14342, and its published code).

    Args:
        config: its schedule.
        solved: how many steps have solved for the equilibrium so far; negative while the iteration
            is still unrolled.
        epoch: the step's.
    """
    if config.stop_epoch and epoch >= config.stop_epoch:
        return 0.0
    if solved < 0:
        return config.pretrain_weight
    if config.weight == 0:
        return 0.0
    return config.weight + config.growth * (solved // config.growth_steps)


def learning_rate(recipe: Recipe, step: int, epoch_steps: int) -> float:
    """Linear warm-up, then a half cosine; the last phase has a half cosine of its own."""
    config, main = recipe.optim, recipe.optim.epochs * epoch_steps
    if step < main:
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / main))
        return warm * (config.final_lr + (config.lr - config.final_lr) * cosine)
    done = (step - main) / (recipe.finish.epochs * epoch_steps)
    return recipe.finish.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: Any, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, over all parameters of ``model``."""
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    if config.name == "muon":
        return Muon([*by_shape(groups[0]), groups[1] | {"matrices": False}], config.lr)
    return torch.optim.AdamW(groups, lr=config.lr)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Kernels decay; gains, biases and norms (one dimension, or weight norm's gain) do not, unless
    ``decay_all`` says so.
    """
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        flat = not config.decay_all and (parameter.ndim <= 1 or name.endswith(".gain"))
        (plain if flat else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def by_shape(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A group in two: the inner kernels, which Muon takes as matrices, and the rest.

    As its authors advise, the layers that meet pixels and classes are not among the first.
    """
    inner = [p for p in group["params"] if p.ndim == 4 and p.shape[1] > 3]
    known = {id(p) for p in inner}
    rest = [p for p in group["params"] if id(p) not in known]
    for matrices, parameters in ((True, inner), (False, rest)):
        yield group | {"params": parameters, "matrices": matrices}
