"""The readouts as a graph holds them: a state to the answer and how sure it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_mdeq.model import MDEQ, State

__all__ = ["ReadMask", "ReadScores"]


class ReadScores(nn.Module):
    """State to class probabilities (B, classes)."""

    def __init__(self, model: MDEQ) -> None:
        super().__init__()
        self.readout = model.readout

    def forward(self, z: State) -> Tensor:
        return torch.softmax(self.readout(z), dim=1)


class ReadMask(nn.Module):
    """State to a mask (B, H, W) uint8 and the confidence (B, H_0, W_0) of its classes.

    The confidence stays at the readout's resolution: whoever wants it larger interpolates one map,
    not one per class.
    """

    def __init__(self, model: MDEQ, height: int, width: int) -> None:
        super().__init__()
        self.readout = model.readout
        self.size = (height, width)

    def forward(self, z: State) -> tuple[Tensor, Tensor]:
        logits = self.readout(z)  # (B, classes, H_0, W_0)
        confidence = torch.softmax(logits, dim=1).amax(dim=1)
        full = nn.functional.interpolate(
            logits, size=self.size, mode="bilinear", align_corners=True
        )
        return full.argmax(dim=1).to(torch.uint8), confidence
