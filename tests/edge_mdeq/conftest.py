"""Fixtures that several files share. Torch is imported only by the tests that need it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_mdeq.config import ModelConfig

if TYPE_CHECKING:
    from edge_mdeq.model import MDEQ

sys.path.insert(0, str(Path(__file__).parent))  # what several files here share lies beside them

Build = Callable[..., "MDEQ"]


@pytest.fixture
def build() -> Build:
    """A function from a config to a model in eval mode with nothing left at its default value.

    Freshly initialised norms have gain 1, bias 0, mean 0 and variance 1, so that mixing them up or
    leaving them out would go unnoticed; kernels of N(0, 0.01) would make everything nearly zero.
    """
    import torch

    from edge_mdeq.model import MDEQ

    def make(config: ModelConfig, seed: int = 0) -> MDEQ:
        generator = torch.Generator().manual_seed(seed)
        model = MDEQ(config).eval()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name.endswith("num_batches_tracked"):
                    continue
                if value.ndim >= 2 and not name.endswith("gain"):
                    fan = value[0].numel()
                    value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
                elif name.endswith(("bias", "running_mean")):
                    value.copy_(0.4 * torch.rand(value.shape, generator=generator) - 0.2)
                else:  # gains and variances
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        return model

    return make
