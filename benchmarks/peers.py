"""The networks that MDEQ is measured against: ResNet and DenseNet, written from their papers.

- "Deep Residual Learning for Image Recognition" (He et al., arXiv:1512.03385), table 1, with
  projection shortcuts where the shape changes (option B). The paper strides in a bottleneck's
  first 1x1 convolution; what is trained today as "ResNet-50" strides in its 3x3, which costs some
  memory and gains some accuracy. ``stride_in_3x3`` picks; today's is the default.
- "Densely Connected Convolutional Networks" (Huang et al., arXiv:1608.06993), table 1: DenseNet-BC
  with growth rate 32 and compression 0.5.

Convolutions start from N(0, 2 / fan_out) (He et al., arXiv:1502.01852), norms from 1 and 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["densenet121", "resnet"]

RESNETS = {  # depth: (bottlenecks?, residual blocks per stage)
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def conv_norm(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, and batch norm."""
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class ResidualBlock(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual_block(
    c_in: int, width: int, stride: int, bottleneck: bool, stride_in_3x3: bool
) -> ResidualBlock:
    """Two 3x3 convolutions, or 1x1, 3x3 and a 1x1 that widens by four (figure 5 of the paper)."""
    c_out = 4 * width if bottleneck else width
    if bottleneck:
        first, second = (1, stride) if stride_in_3x3 else (stride, 1)
        body = nn.Sequential(
            *(conv_norm(c_in, width, 1, first), nn.ReLU()),
            *(conv_norm(width, width, 3, second), nn.ReLU()),
            conv_norm(width, c_out, 1),
        )
    else:
        body = nn.Sequential(
            *(conv_norm(c_in, width, 3, stride), nn.ReLU()), conv_norm(width, c_out, 3)
        )
    same = stride == 1 and c_in == c_out
    return ResidualBlock(body, nn.Identity() if same else conv_norm(c_in, c_out, 1, stride))


def resnet(depth: int, classes: int = 1000, stride_in_3x3: bool = True) -> nn.Sequential:
    """ResNet-18, 34, 50 or 101: images (B, 3, H, W) to logits (B, classes)."""
    bottleneck, blocks = RESNETS[depth]
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for k in range(count):
            stride = 2 if k == 0 and stage > 0 else 1
            layers.append(residual_block(channels, width, stride, bottleneck, stride_in_3x3))
            channels = 4 * width if bottleneck else width
    return classifier(layers, channels, classes)


class DenseLayer(nn.Module):
    """Append ``growth`` new channels, computed from all channels so far, to these."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            *(nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, 4 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU()),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], dim=1)


def densenet121(classes: int = 1000) -> nn.Sequential:
    """DenseNet-121: images (B, 3, H, W) to logits (B, classes)."""
    growth, channels, blocks = 32, 64, (6, 12, 24, 16)
    layers: list[nn.Module] = [
        *(conv_norm(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    ]
    for stage, count in enumerate(blocks):
        if stage > 0:  # the transition that compresses by a half
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return classifier(layers, channels, classes)


def classifier(layers: list[nn.Module], channels: int, classes: int) -> nn.Sequential:
    """``layers``, global average pooling and a linear layer, initialised."""
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
