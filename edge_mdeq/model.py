"""The Multiscale Deep Equilibrium Model in the symbols of its paper (arXiv:2006.08656).

    image --stem--> injection u --\\
                                   f(z, u) = z   solved for z = (z_0 .. z_{n-1})
    zeros or the last frame's z --/              |
                                                 +--readout--> scores or logits

Shapes: B images, n scales; C_i channels and H_i x W_i pixels at scale i, finest first, each scale
half as wide and half as high as the one before. E is the expansion factor. How the fixed point is
found is not the model's business: see ``edge_mdeq.solvers``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from edge_mdeq.config import ModelConfig

__all__ = ["MDEQ", "Cell", "State"]

State = tuple[Tensor, ...]  # one (B, C_i, H_i, W_i) per scale, finest first


class WeightNormConv2d(nn.Conv2d):
    """A convolution without bias whose kernel is ``gain * weight / ||weight||`` per output channel.

    The caller computes ``kernel()`` once per solve and passes it to every evaluation of f.
    """

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2, bias=False)
        norm = self.weight.detach().flatten(1).norm(dim=1)
        self.gain = nn.Parameter(norm.view(-1, 1, 1, 1))

    def kernel(self) -> Tensor:
        """The derived kernel, (C_out, C_in, k, k)."""
        return torch._weight_norm(self.weight, self.gain, 0)


def kernel_of(conv: nn.Conv2d) -> Tensor:
    """The kernel of a convolution of f, derived where weight norm has not been folded away."""
    return conv.kernel() if isinstance(conv, WeightNormConv2d) else conv.weight


class ResidualBlock(nn.Module):
    """One BasicBlock per scale: where z_i meets its injection."""

    def __init__(self, channels: int, expansion: int, groups: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1: nn.Conv2d = WeightNormConv2d(channels, inner, 3)
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv2: nn.Conv2d = WeightNormConv2d(inner, channels, 3)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(
        self, z: Tensor, u: Tensor | None, kernels: Sequence[Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        if kernels is None:
            kernels = [kernel_of(self.conv1), kernel_of(self.conv2)]
        a = F.relu(self.norm1(F.conv2d(z, kernels[0], padding=1)))  # (B, E*C_i, H_i, W_i)
        b = F.conv2d(a, kernels[1], padding=1)  # (B, C_i, H_i, W_i)
        if mask is not None:
            b = mask * b
        if u is not None:  # dropout acts on the convolution's output, never on the injection
            b = b + u
        result: Tensor = self.norm3(F.relu(self.norm2(b) + z))
        return result


def up_path(c_from: int, c_to: int, groups: int, factor: int) -> nn.Sequential:
    """Coarse to fine: 1x1 convolution and norm at the low resolution, then nearest upsampling."""
    return nn.Sequential(
        nn.Conv2d(c_from, c_to, 1, bias=False),
        nn.GroupNorm(groups, c_to),
        nn.Upsample(scale_factor=factor, mode="nearest"),
    )


def down_path(c_from: int, c_to: int, groups: int, steps: int) -> nn.Sequential:
    """Fine to coarse: ``steps`` strided 3x3 convolutions; only the last one changes the width."""
    layers: list[nn.Module] = []
    for step in range(steps):
        last = step == steps - 1
        width = c_to if last else c_from
        layers.append(nn.Conv2d(c_from, width, 3, stride=2, padding=1, bias=False))
        layers.append(nn.GroupNorm(groups, width))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class PostFuse(nn.Module):
    """ReLU, 1x1 convolution and the GroupNorm that f ends in."""

    def __init__(self, channels: int, groups: int, affine: bool) -> None:
        super().__init__()
        self.conv: nn.Conv2d = WeightNormConv2d(channels, channels, 1)
        self.norm = nn.GroupNorm(groups, channels, affine=affine)

    def forward(self, s: Tensor, kernel: Tensor) -> Tensor:
        result: Tensor = self.norm(F.conv2d(F.relu(s), kernel))
        return result


class Cell(nn.Module):
    """f(z, u): a residual block per scale, full fusion between scales, post-fuse.

    With a single scale there is nothing to fuse, and fusion and post-fuse are skipped, as in the
    published code.

    Attributes:
        recompute: keep nothing of the residual blocks for the backward pass, neither activations
            nor derived kernels, and compute them a second time there. Gradients stay the same.
            Training sets it; it changes nothing where no gradient is tracked.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, g, n = config.channels, config.groups, config.scales
        self.dropout = config.dropout
        self.recompute = False
        self.blocks = nn.ModuleList(ResidualBlock(ci, config.expansion, g) for ci in c)
        self.fuse = nn.ModuleList()  # fuse[i][j]: from scale j to scale i
        self.post = nn.ModuleList()
        if n == 1:
            return
        for i in range(n):
            self.fuse.append(
                nn.ModuleList(
                    nn.Identity()
                    if i == j
                    else up_path(c[j], c[i], g, 2 ** (j - i))
                    if j > i
                    else down_path(c[j], c[i], g, i - j)
                    for j in range(n)
                )
            )
            self.post.append(PostFuse(c[i], g // 2, config.post_norm_affine))

    def kernels(self) -> list[Tensor]:
        """All weight-normed kernels, derived once per solve: two per block, then the post-fuse."""
        convs: list[Any] = [c for block in self.blocks for c in (block.conv1, block.conv2)]
        convs += [post.conv for post in self.post]
        return [kernel_of(conv) for conv in convs]

    def masks(self, z: State) -> list[Tensor | None]:
        """One dropout mask (B, C_i, 1, 1) per scale, drawn once per solve; None in eval."""
        if not self.training or self.dropout == 0.0:
            return [None] * len(z)
        keep = 1.0 - self.dropout
        return [torch.empty_like(zi[:, :, :1, :1]).bernoulli_(keep) / keep for zi in z]

    def forward(
        self,
        z: State,
        u: Tensor,
        kernels: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor | None] | None = None,
    ) -> State:
        """One evaluation of f.

        Args:
            z: the state, n tensors (B, C_i, H_i, W_i).
            u: the injection at scale 0, (B, C_0, H_0, W_0); it is zero at all other scales.
            kernels: from ``kernels()``; derived afresh when not given.
            masks: from ``masks()``; no dropout when not given.
        """
        n = len(z)
        kernels = self.kernels() if kernels is None else kernels
        masks = [None] * n if masks is None else masks
        r: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            ui = u if i == 0 else None
            if self.recompute and torch.is_grad_enabled():  # masks are given: nothing is random
                args = (z[i], ui, None, masks[i])
                r.append(checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False))
            else:
                r.append(block(z[i], ui, kernels[2 * i : 2 * i + 2], masks[i]))
        if n == 1:
            return (r[0],)
        fused = []
        for i, row in enumerate(self.fuse):
            assert isinstance(row, nn.ModuleList)
            s = row[0](r[0])
            for j in range(1, n):
                s = s + row[j](r[j])  # (B, C_i, H_i, W_i)
            fused.append(self.post[i](s, kernels[2 * n + i]))
        return tuple(fused)


def conv_norm(
    c_in: int, c_out: int, size: int, momentum: float, stride: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Convolution and batch norm, as the stem and the readouts use them."""
    conv = nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, bias=bias)
    return [conv, nn.BatchNorm2d(c_out, momentum=momentum)]


class Injection(nn.Module):
    """Stem and stage 0: normalised image (B, 3, H, W) to u (B, C_0, H_0, W_0)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c0, m = config.channels[0], config.norm_momentum
        strides = [2 if config.downsample_times >= k else 1 for k in (1, 2)]
        self.stem = nn.Sequential(
            *conv_norm(3, c0, 3, m, stride=strides[0]),
            nn.ReLU(),
            *conv_norm(c0, c0, 3, m, stride=strides[1]),
            nn.ReLU(),
        )
        transform = config.has_injection_transform
        self.transform: nn.Module = (
            nn.Sequential(*conv_norm(c0, c0, 1, m), nn.ReLU()) if transform else nn.Identity()
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.transform(self.stem(image))
        return result


class Bottleneck(nn.Module):
    """ResNet's bottleneck with expansion 4; its inner batch norms have no gain and no bias."""

    def __init__(self, c_in: int, width: int, momentum: float) -> None:
        super().__init__()

        def plain(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, momentum=momentum, affine=False)

        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.norm1 = plain(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = plain(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.norm3 = plain(4 * width)
        self.shortcut = nn.Sequential(*conv_norm(c_in, 4 * width, 1, momentum))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ClassificationReadout(nn.Module):
    """State to logits (B, classes): widen each scale, fold the finer into the coarser, pool."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, h, m = config.channels, config.head_channels, config.norm_momentum
        self.widen = nn.ModuleList(Bottleneck(ci, hi, m) for ci, hi in zip(c, h, strict=True))
        self.down = nn.ModuleList(
            nn.Sequential(*conv_norm(4 * a, 4 * b, 3, m, stride=2, bias=True), nn.ReLU())
            for a, b in pairwise(h)
        )
        self.final = nn.Sequential(
            *conv_norm(4 * h[-1], config.final_channels, 1, m, bias=True), nn.ReLU()
        )
        self.classifier = nn.Linear(config.final_channels, config.classes)

    def forward(self, z: State) -> Tensor:
        y = self.widen[0](z[0])
        for widen, down, zi in zip(self.widen[1:], self.down, z[1:], strict=True):
            y = widen(zi) + down(y)
        pooled = self.final(y).mean(dim=(2, 3))  # (B, F)
        logits: Tensor = self.classifier(pooled)
        return logits


class SegmentationReadout(nn.Module):
    """State to logits (B, classes, H_0, W_0), at the resolution of the finest scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        s = sum(config.channels)
        self.last = nn.Sequential(
            *conv_norm(s, s, 1, config.norm_momentum, bias=True),
            nn.ReLU(),
            nn.Conv2d(s, config.classes, 1),
        )

    def forward(self, z: State) -> Tensor:
        size = z[0].shape[2:]
        up = [F.interpolate(zi, size=size, mode="bilinear", align_corners=True) for zi in z[1:]]
        logits: Tensor = self.last(torch.cat([z[0], *up], dim=1))
        return logits


class MDEQ(nn.Module):
    """The model's three pieces; ``edge_mdeq.solvers.solve`` finds the equilibrium between them.

    Example:
        >>> u = model.inject(image)
        >>> solution = solve(model.bind(u), model.zero_state(u), FixedPoint(), 8)
        >>> logits = model.readout(solution.value)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.inject = Injection(config)
        self.cell = Cell(config)
        self.readout: nn.Module = (
            ClassificationReadout(config)
            if config.task == "classification"
            else SegmentationReadout(config)
        )
        self.apply(initialise)

    def zero_state(self, u: Tensor) -> State:
        """The cold start z = 0 for an injection ``u`` of (B, C_0, H_0, W_0)."""
        b, _, h, w = u.shape
        return tuple(u.new_zeros(b, c, h >> i, w >> i) for i, c in enumerate(self.config.channels))

    def bind(self, u: Tensor) -> Callable[[State], State]:
        """z -> f(z, u) with everything that stays fixed during one solve: kernels and dropout."""
        kernels = self.cell.kernels()
        masks = self.cell.masks(self.zero_state(u))
        return lambda z: self.cell(z, u, kernels, masks)

    def freeze(self) -> MDEQ:
        """A copy for inference, in eval mode, with weight norm and batch norm folded away.

        It computes the same function up to rounding; group norms stay, they cannot be folded.
        """
        frozen = copy.deepcopy(self).eval().requires_grad_(False)
        frozen.cell.recompute = False
        for module in list(frozen.modules()):
            if isinstance(module, nn.Sequential):
                fold_sequential(module)
            elif isinstance(module, Bottleneck):
                for k in (1, 2, 3):
                    conv, norm = getattr(module, f"conv{k}"), getattr(module, f"norm{k}")
                    setattr(module, f"conv{k}", fuse_conv_bn_eval(conv, norm))
                    setattr(module, f"norm{k}", nn.Identity())
            for name, child in list(module.named_children()):
                if isinstance(child, WeightNormConv2d):
                    setattr(module, name, fold_weight_norm(child))
        return frozen.eval().requires_grad_(False)


def fold_sequential(layers: nn.Sequential) -> None:
    """Fold each batch norm that follows a convolution into it, leaving an identity behind."""
    for k in range(len(layers) - 1):
        conv, norm = layers[k], layers[k + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[k], layers[k + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def fold_weight_norm(conv: WeightNormConv2d) -> nn.Conv2d:
    """The plain convolution that computes what ``conv`` computes."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=False,
    )
    plain.weight = nn.Parameter(conv.kernel().detach())
    return plain


def initialise(module: nn.Module) -> None:
    """The published initialisation: N(0, 0.01) for convolutions, except the weight-normed ones."""
    if isinstance(module, nn.Conv2d) and not isinstance(module, WeightNormConv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.01)
