"""Does the imported model compute what its checkpoint says? Asked of the bare tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_mdeq.checkpoints.formulas import RawModel
from edge_mdeq.checkpoints.layouts import Checkpoint
from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import ParityError
from edge_mdeq.model import MDEQ

__all__ = ["Difference", "require_agreement", "verify"]

TOLERANCE = 1e-5  # both sides compute in float64; float32 weights that were folded leave 1e-7
COMPARED_AFTER = (1, 4)  # plain iterations


@dataclass(frozen=True)
class Difference:
    """``||imported - checkpoint|| / ||checkpoint||`` of one quantity, and what is allowed."""

    what: str
    relative: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


@torch.no_grad()
def verify(checkpoint: Checkpoint, model: MDEQ, seed: int = 0, batch: int = 2) -> list[Difference]:
    """Compare injection, states after 1 and 4 plain iterations, and what is read out then.

    Both sides compute in float64 on seeded noise two strides high and three wide, so that what
    remains is not rounding: a difference is one of the weights or of the architecture.

    Args:
        checkpoint: what was imported.
        model: what it became.
        seed: of the images.
        batch: number of images.
    """
    config = model.config
    raw = RawModel(checkpoint.tensors, checkpoint.stage, config.groups, config.downsample_times)
    ours = copy.deepcopy(model).double().eval()
    image = noise(config, seed, batch)
    return compare(trajectory(ours, image), trajectory(raw, image))


def noise(config: ModelConfig, seed: int = 0, batch: int = 2) -> Tensor:
    """Noise (B, 3, H, W) in float64 of the smallest size that is not square."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 2 * config.stride, 3 * config.stride)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def trajectory(model: MDEQ | RawModel, image: Tensor) -> list[tuple[str, Tensor]]:
    """What is compared, by name."""
    u = model.inject(image)
    found = [("injection", u)]
    f, z = model.bind(u), tuple(model.zero_state(u))
    for count in range(1, max(COMPARED_AFTER) + 1):
        z = tuple(f(z))
        if count in COMPARED_AFTER:
            plural = "s" if count > 1 else ""
            found += [(f"state {i} after {count} iteration{plural}", zi) for i, zi in enumerate(z)]
    return [*found, (f"logits after {max(COMPARED_AFTER)}", model.readout(z))]


def compare(ours: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]) -> list[Difference]:
    """The difference of each quantity."""
    return [
        Difference(what, relative(value, wanted), TOLERANCE)
        for (what, value), (_, wanted) in zip(ours, expected, strict=True)
    ]


def relative(ours: Tensor, expected: Tensor) -> float:
    """Relative difference in norm; infinite where the shapes differ."""
    if ours.shape != expected.shape:
        return float("inf")
    difference, size = float((ours - expected).norm()), float(expected.norm())
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def require_agreement(differences: list[Difference]) -> None:
    """Raise ParityError if one is beyond its tolerance."""
    bad = [d for d in differences if not d.ok]
    if bad:
        parts = [f"{d.what} differs by {d.relative:.1e} (allowed {d.tolerance:.0e})" for d in bad]
        raise ParityError(
            f"the imported model does not compute what its checkpoint says: {', '.join(parts)}; "
            "nothing was written"
        )
