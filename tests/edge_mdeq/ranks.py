"""A training step's gradient, as each of several processes computes it. Importable by them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from edge_mdeq.training.equilibrium import EquilibriumTask
from edge_mdeq.training.schedule import Plan

PLAN = Plan(unrolled=False, evaluations=60, penalty=0.0)


def save_gradients(
    fabric: Fabric, tasks: Sequence[EquilibriumTask], image: Tensor, parts: int, out: Path
) -> None:
    """The gradient of each task on ``image``, of which each rank takes its share; rank 0 saves."""
    torch.set_num_threads(1)
    found = [gradient(fabric, task, image, parts) for task in tasks]
    if fabric.global_rank == 0:
        torch.save(found, out)
    fabric.barrier()  # a rank that ends while another still talks to it can abort that one
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gradient(fabric: Fabric, task: EquilibriumTask, image: Tensor, parts: int) -> Tensor:
    """All parameters' gradients after ``parts`` micro-batches, flat.

    The loss is the mean over the whole batch of each sample's weighted sum.

    Raises:
        AssertionError: a parameter has none, or the ranks do not have the same.
    """
    module = fabric.setup_module(task)
    share = image[fabric.global_rank :: fabric.world_size].chunk(parts)
    for k, part in enumerate(share):
        wait = k < parts - 1
        with fabric.no_backward_sync(module) if wait else nullcontext():
            logits, _, _ = module(part, PLAN)
            weights = torch.linspace(-1, 2, logits[0].numel(), dtype=logits.dtype)
            loss = (weights.view_as(logits[0]) * logits).sum() / len(part)
            fabric.backward(loss / parts)
    grads = [p.grad for p in task.parameters()]
    assert all(grad is not None for grad in grads)
    flat = torch.cat([grad.flatten() for grad in grads if grad is not None])
    mean = fabric.all_reduce(flat.clone(), reduce_op="mean")
    assert torch.equal(mean, flat), "ranks disagree"
    return flat
