"""Weights for any registered configuration that are nobody's: drawn, with nothing at a default.

Their plain iteration need not converge, and rounding grows from step to step: the hard case for a
comparison.
"""

from __future__ import annotations

import torch
from torch import nn

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup

__all__ = ["filled"]


def filled(name: str, seed: int = 0) -> tuple[MDEQ, InputConfig]:
    """A registered model with kernels of N(0, 1 / fan-in) and uniform everything else, in eval."""
    entry = lookup(name)
    generator = torch.Generator().manual_seed(seed)
    model = MDEQ(entry.model)
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if value.dtype != torch.float32:
                continue
            drawn = torch.rand(value.shape, generator=generator)
            if key.endswith("gain"):
                value.copy_(0.6 + 0.6 * drawn)
            elif value.ndim >= 2:
                normal = torch.randn(value.shape, generator=generator)
                value.copy_(normal / value[0].numel() ** 0.5)
            elif key.endswith(("weight", "running_var")):
                value.copy_(0.5 + drawn)
            else:
                value.copy_(0.4 * drawn - 0.2)
    nn.Module.eval(model)
    return model, entry.input
