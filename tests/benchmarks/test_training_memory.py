"""The count of what a training step keeps is exact, and what it says of MDEQ at 224 x 224 holds."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import training_memory as bench
from torch import Tensor, nn

from edge_mdeq.config import ModelConfig
from edge_mdeq.gradients import implicit
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup
from edge_mdeq.solvers import FixedPoint

FLOAT = 4  # bytes
CONFIG = ModelConfig(
    task="classification",
    classes=5,
    channels=(8, 16),
    expansion=2,
    downsample_times=1,
    head_channels=(4, 8),
    final_channels=16,
)


def test_two_layers_keep_what_a_hand_count_gives() -> None:
    """Square keeps its argument (7, 2); ReLU and the second layer share the hidden (7, 3)."""
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(7, 4)  # the first layer saves it, but it was there before
    kept = bench.count_kept(network, lambda: network(x).square().sum())
    assert kept == bench.Kept(activations=7 * (3 + 2) * FLOAT, kernels=0)


def test_views_count_once_and_whole() -> None:
    """Both factors are views into one tensor of 10 numbers; the product saves both."""
    network = nn.Linear(4, 10)
    x = torch.randn(1, 4)

    def forward() -> Tensor:
        y = network(x)
        return (y[:, :5] * y[:, 5:]).sum()

    assert bench.count_kept(network, forward).activations == 10 * FLOAT


def test_what_a_closure_holds_for_the_backward_pass_counts() -> None:
    network = nn.Linear(4, 1)
    x = torch.randn(1, 4)

    def forward() -> Tensor:
        loss = network(x).sum()
        held = torch.ones(1000)
        loss.register_hook(lambda grad: grad * held.mean())
        return loss

    assert bench.count_kept(network, forward).activations == 1000 * FLOAT


def test_what_is_dropped_before_the_end_does_not_count() -> None:
    network = nn.Linear(4, 3)
    x = torch.randn(2, 4)

    def forward() -> Tensor:
        network(x).square().sum()  # a graph that nobody keeps
        return network(x).square().sum()

    assert bench.count_kept(network, forward).activations == 2 * 3 * FLOAT


def test_derived_kernels_stand_apart_and_recomputing_drops_those_of_the_blocks() -> None:
    kept = {}
    for recompute in (False, True):
        model = bench.mdeq(CONFIG, recompute)
        batch = bench.Batch.make(2, 16)
        forward = partial(bench.loss_of, model, batch, "anderson", 2)
        kept[recompute] = bench.count_kept(model, forward)
    blocks = sum(9 * 2 * c * 2 * c for c in CONFIG.channels)  # two 3x3, c <-> 2c
    post = sum(c * c for c in CONFIG.channels)
    assert kept[False].kernels == (blocks + post) * FLOAT
    assert kept[True].kernels == post * FLOAT
    assert kept[True].activations < 0.8 * kept[False].activations


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "broyden"])
def test_iterations_keep_nothing(solver: str, recompute: bool) -> None:
    model = bench.mdeq(CONFIG, recompute)
    batch = bench.Batch.make(2, 32)
    few, many = (
        bench.count_kept(model, partial(bench.loss_of, model, batch, solver, k)) for k in (4, 40)
    )
    assert few == many
    assert few.activations > 0


@pytest.fixture(scope="module")
def published_size() -> Callable[[str], bench.Kept]:
    """What a network keeps at batch 8 and 224 x 224: shapes decide it, so that no number is."""

    def count(name: str) -> bench.Kept:
        with torch.device("meta"):
            model = bench.NETWORKS[name]()
        batch = bench.Batch.make(8, 224, "meta")

        def forward() -> Tensor:
            if not isinstance(model, MDEQ):
                return F.cross_entropy(model(batch.image), batch.target)
            u = model.inject(batch.image)
            f = model.bind(u)
            z = implicit(f, model.zero_state(u), FixedPoint(), 1, 0.0)  # a solve would keep nothing
            return F.cross_entropy(model.readout(z), batch.target)

        return bench.count_kept(model, forward)

    return count


@pytest.mark.parametrize("name", list(bench.LIMITS))
def test_mdeq_keeps_the_share_of_resnet_101_that_was_set_as_its_limit(
    name: str, published_size: Callable[[str], bench.Kept]
) -> None:
    reference, kept = published_size(bench.REFERENCE), published_size(name)
    assert kept.all <= bench.LIMITS[name] * reference.all  # even with the derived kernels


def test_counting_by_shapes_gives_what_counting_a_real_step_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = lookup("imagenet-nano").model
    counts = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = bench.mdeq(config)
        batch = bench.Batch.make(2, 64, device)
        if device == "meta":
            monkeypatch.setattr(bench, "solve", lambda f, z, *_: argparse.Namespace(value=z))
        counts.append(bench.count_kept(model, partial(bench.loss_of, model, batch, "anderson", 3)))
        monkeypatch.undo()
    assert counts[0] == counts[1]


def test_the_peak_of_a_process_is_at_least_what_the_count_predicts() -> None:
    row = bench.Row("DenseNet-121", sum(p.nbytes for p in bench.densenet121().parameters()))
    model = bench.densenet121()
    batch = bench.Batch.make(1, 64)
    row.kept[1] = bench.count_kept(model, partial(bench.loss_of, model, batch, "anderson", 1))
    command = [sys.executable, bench.__file__, "--child", row.name]
    command += ["--batch", "1", "--size", "64", "--iterations", "1"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak = json.loads(done.stdout)["peak_bytes"]
    assert row.least_peak() < peak < 3 * row.least_peak()
