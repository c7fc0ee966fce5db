"""The peers have the published sizes, and compute what the papers draw."""

from __future__ import annotations

import peers
import pytest
import torch
from torch import nn


@pytest.mark.parametrize(
    ("network", "published"),
    [
        (lambda: peers.resnet(18), 11_689_512),
        (lambda: peers.resnet(34), 21_797_672),
        (lambda: peers.resnet(50), 25_557_032),
        (lambda: peers.resnet(50, stride_in_3x3=False), 25_557_032),
        (lambda: peers.resnet(101), 44_549_160),
        (lambda: peers.densenet121(), 7_978_856),
    ],
    ids=["resnet18", "resnet34", "resnet50", "resnet50 as in the paper", "resnet101", "densenet"],
)
def test_the_parameter_counts_are_the_published_ones(network, published: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in network().parameters()) == published


@pytest.mark.parametrize(
    ("network", "last"),
    [
        (lambda: peers.resnet(18), (512, 7, 7)),
        (lambda: peers.resnet(50), (2048, 7, 7)),
        (lambda: peers.resnet(50, stride_in_3x3=False), (2048, 7, 7)),
        (lambda: peers.densenet121(), (1024, 7, 7)),
    ],
    ids=["resnet18", "resnet50", "resnet50 as in the paper", "densenet121"],
)
def test_the_last_feature_map_has_the_size_of_table_1(network, last: tuple[int, ...]) -> None:
    with torch.device("meta"):
        layers = network()
        image = torch.empty(2, 3, 224, 224)
    pool = next(i for i, m in enumerate(layers) if isinstance(m, nn.AdaptiveAvgPool2d))
    assert layers[:pool](image).shape == (2, *last)
    assert layers(image).shape == (2, 1000)


def test_the_multiply_adds_are_the_published_ones() -> None:
    """Table 1 of both papers counts multiply-adds of convolutions and the linear layer."""
    published = {"resnet18": 1.8e9, "resnet50": 3.8e9, "resnet101": 7.6e9}
    for name, expected in published.items():
        with torch.device("meta"):
            network = peers.resnet(int(name[6:]), stride_in_3x3=False)
            image = torch.empty(1, 3, 224, 224)
        total = 0

        def count(module: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
            nonlocal total
            total += out.numel() * module.weight[0].numel()

        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        network(image)
        assert total == pytest.approx(expected, rel=0.03), name


def test_every_parameter_of_a_peer_learns() -> None:
    for network in (peers.resnet(18, 7), peers.densenet121(7)):
        image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        network(image).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
