"""Fixtures that several files share. Torch is imported only by the tests that need it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_data import write_camvid, write_cifar, write_cityscapes, write_folder

from edge_mdeq.config import ModelConfig

if TYPE_CHECKING:
    from problems import Problem

    from edge_mdeq.model import MDEQ

sys.path.insert(0, str(Path(__file__).parent))  # what several files here share lies beside them

Build = Callable[..., "MDEQ"]


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A dataset in CamVid's layout, for a test to spoil."""
    return write_camvid(tmp_path / "camvid")


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """A dataset in the layout of Cityscapes, for a test to spoil."""
    return write_cityscapes(tmp_path / "cityscapes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder per class, for a test to spoil."""
    return write_folder(tmp_path / "folder")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-10's binary version, for a test to spoil."""
    return write_cifar(tmp_path / "cifar")


@pytest.fixture(scope="session")
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


@pytest.fixture
def build_contracting(build: Build) -> Build:
    """As ``build``, with a cell that contracts: spectral radius near 0.5 at its equilibria.

    The state becomes a large constant per channel plus a small part that depends on the rest of the
    state. Norms that divide by the spread of their input then divide by a large number that hardly
    changes, and each evaluation passes on a fraction of a change. Found by experiment: 0.45 to 0.8
    over seeds 0 to 3, where every group of a norm has four channels or more. With fewer a group can
    by chance be nearly constant, which its norm blows up: radii of 2 and more.
    """
    import torch

    variable, constant = 0.2, 5.0  # factors on the gain and the bias of the norm that f ends in

    def make(config: ModelConfig, seed: int = 0) -> MDEQ:
        model = build(config, seed)
        with torch.no_grad():
            for post in model.cell.post:
                post.norm.weight.mul_(variable)
                post.norm.bias.mul_(constant)
        return model

    return make


@pytest.fixture
def contraction() -> Problem:
    """A dense contraction of 11 numbers per sample."""
    from problems import tanh_problem

    return tanh_problem()


@pytest.fixture
def mdeq(build_contracting: Build) -> Problem:
    """A small real MDEQ that contracts."""
    from problems import SEGMENTER, mdeq_problem

    return mdeq_problem(build_contracting(SEGMENTER))


@pytest.fixture(params=["contraction", "mdeq"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """Each of the two above."""
    value: Problem = request.getfixturevalue(request.param)
    return value
