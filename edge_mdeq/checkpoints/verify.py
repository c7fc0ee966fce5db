"""Does the imported model compute what its checkpoint says? Asked of the bare tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_mdeq.checkpoints.formulas import RawModel
from edge_mdeq.checkpoints.layouts import Checkpoint
from edge_mdeq.errors import ParityError
from edge_mdeq.model import MDEQ

__all__ = ["Difference", "require_agreement", "verify"]

STATE_TOLERANCE = 1e-4
ANSWER_TOLERANCE = 1e-3
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
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 2 * config.stride, 3 * config.stride)
    image = torch.randn(shape, generator=generator, dtype=torch.float64)

    u, expected_u = ours.inject(image), raw.inject(image)
    found = [Difference("injection", relative([u], [expected_u]), STATE_TOLERANCE)]
    f, z, expected = ours.bind(u), ours.zero_state(u), raw.zero_state(expected_u)
    for count in range(1, max(COMPARED_AFTER) + 1):
        z, expected = f(z), raw.f(expected, expected_u)
        if count in COMPARED_AFTER:
            for i, (zi, ei) in enumerate(zip(z, expected, strict=True)):
                what = f"state {i} after {count} iteration{'s' if count > 1 else ''}"
                found.append(Difference(what, relative([zi], [ei]), STATE_TOLERANCE))
    logits = relative([ours.readout(z)], [raw.readout(expected)])
    found.append(Difference(f"logits after {max(COMPARED_AFTER)}", logits, ANSWER_TOLERANCE))
    return found


def relative(ours: list[Tensor], expected: list[Tensor]) -> float:
    """Relative difference of the whole; of different shapes, infinity."""
    if any(a.shape != b.shape for a, b in zip(ours, expected, strict=True)):
        return float("inf")
    difference = sum(float((a - b).square().sum()) for a, b in zip(ours, expected, strict=True))
    size = sum(float(b.square().sum()) for b in expected)
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float((difference / size) ** 0.5)


def require_agreement(differences: list[Difference]) -> None:
    """Raise ParityError if one is beyond its tolerance."""
    bad = [d for d in differences if not d.ok]
    if bad:
        parts = [f"{d.what} differs by {d.relative:.1e} (allowed {d.tolerance:.0e})" for d in bad]
        raise ParityError(
            f"the imported model does not compute what its checkpoint says: {', '.join(parts)}; "
            "nothing was written"
        )
