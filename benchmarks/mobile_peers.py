"""Networks for small devices that MDEQ is measured against, written from their papers.

- MobileNetV3-Large: "Searching for MobileNetV3" (Howard et al., arXiv:1905.02244), table 1.
- EfficientNet-Lite0: EfficientNet-B0 ("EfficientNet", Tan and Le, arXiv:1905.11946, table 1) as its
  authors changed it for integer hardware: no squeeze-and-excitation, ReLU6 for swish.
"""

from __future__ import annotations

import torch.nn.functional as F
from peers import classifier
from torch import Tensor, nn

__all__ = ["efficientnet_lite0", "mobilenet_v3_large"]

MOBILENET = (  # kernel, expanded channels, channels, squeeze and excite?, h-swish?, stride
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
EFFICIENTNET = (  # kernel, expansion, channels, blocks, stride of the first
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)


class SqueezeExcite(nn.Module):
    """Scale channels by what a bottleneck of a quarter of them says of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = round_to_8(channels / 4)
        self.reduce = nn.Conv2d(channels, narrow, 1)
        self.expand = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.expand(narrow))


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8, but not below nine tenths of ``channels``."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class InvertedResidual(nn.Module):
    """1x1 to more channels, a convolution per channel, 1x1 back; added to its input if it fits."""

    def __init__(
        self,
        c_in: int,
        expanded: int,
        c_out: int,
        size: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != c_in:
            layers += [*conv_norm(c_in, expanded, 1), activation()]
        layers += [*conv_norm(expanded, expanded, size, stride, expanded), activation()]
        if squeeze:
            layers.append(SqueezeExcite(expanded))
        self.body = nn.Sequential(*layers, *conv_norm(expanded, c_out, 1))
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def conv_norm(
    c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Convolution without bias, and batch norm."""
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(c_out)


def mobilenet_v3_large(classes: int = 1000) -> nn.Sequential:
    """MobileNetV3-Large: images (B, 3, H, W) to logits (B, classes)."""
    layers: list[nn.Module] = [*conv_norm(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for size, expanded, c_out, squeeze, swish, stride in MOBILENET:
        activation: type[nn.Module] = nn.Hardswish if swish else nn.ReLU
        layers.append(
            InvertedResidual(channels, expanded, c_out, size, stride, activation, squeeze)
        )
        channels = c_out
    layers += [*conv_norm(channels, 960, 1), nn.Hardswish()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1), nn.Hardswish()]
    return classifier(layers, 1280, classes)


def efficientnet_lite0(classes: int = 1000) -> nn.Sequential:
    """EfficientNet-Lite0: images (B, 3, H, W) to logits (B, classes)."""
    layers: list[nn.Module] = [*conv_norm(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for size, expansion, c_out, blocks, stride in EFFICIENTNET:
        for k in range(blocks):
            layers.append(
                InvertedResidual(
                    channels, expansion * channels, c_out, size, stride if k == 0 else 1,
                    nn.ReLU6, False,
                )
            )  # fmt: skip
            channels = c_out
    layers += [*conv_norm(channels, 1280, 1), nn.ReLU6()]
    return classifier(layers, 1280, classes)
