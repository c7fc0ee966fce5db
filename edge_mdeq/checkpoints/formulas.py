"""A published MDEQ evaluated from the bare tensors of its checkpoint, without any module.

Written from the description of the published code, not from ``edge_mdeq.model``, which it is there
to check: weight norm stays unfolded, nothing is renamed. It knows both spellings of a kernel
(whole, or ``weight_g`` and ``weight_v``), hence all published layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RawModel"]

BATCH_NORM_EPS = 1e-5
GROUP_NORM_EPS = 1e-5


@dataclass(frozen=True)
class RawModel:
    """The functions of one checkpoint.

    Attributes:
        tensors: by published key, without wrappers and copies.
        stage: the name of f, "fullstage" or "full_stage".
        groups: groups of the norms in f.
        downsample_times: strided convolutions of the stem.
        dtype: what to compute in; tensors are converted as they are used.
    """

    tensors: Mapping[str, Tensor]
    stage: str
    groups: int
    downsample_times: int
    dtype: torch.dtype = torch.float64

    @property
    def scales(self) -> int:
        """n."""
        n = 0
        while f"{self.stage}.branches.{n}.blocks.0.gn2.weight" in self.tensors:
            n += 1
        return n

    def get(self, key: str) -> Tensor | None:
        """The tensor of ``key``, if there is one."""
        tensor = self.tensors.get(key)
        return None if tensor is None else tensor.to(self.dtype)

    def kernel(self, name: str) -> Tensor:
        """The kernel of a convolution: as it is, or g * v / ||v|| per output channel."""
        plain = self.get(f"{name}.weight")
        if plain is not None:
            return plain
        v, g = self.get(f"{name}.weight_v"), self.get(f"{name}.weight_g")
        assert v is not None, f"{name}.weight_v"
        assert g is not None, f"{name}.weight_g"
        length = (v * v).sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return g * (v / length)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """A convolution that keeps the size (at stride 1)."""
        kernel = self.kernel(name)
        return F.conv2d(x, kernel, self.get(f"{name}.bias"), stride, kernel.shape[-1] // 2)

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        """(x - mean) / sqrt(variance + eps), with gain and bias where there are any."""
        mean, variance = self.get(f"{name}.running_mean"), self.get(f"{name}.running_var")
        assert mean is not None, f"{name}.running_mean"
        assert variance is not None, f"{name}.running_var"
        y = (x - mean[:, None, None]) / (variance[:, None, None] + BATCH_NORM_EPS).sqrt()
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        if weight is not None and bias is not None:
            y = y * weight[:, None, None] + bias[:, None, None]
        return y

    def group_norm(self, x: Tensor, name: str, groups: int) -> Tensor:
        """Group norm, with gain and bias where there are any."""
        return F.group_norm(
            x, groups, self.get(f"{name}.weight"), self.get(f"{name}.bias"), GROUP_NORM_EPS
        )

    def inject(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) to injection (B, C_0, H_0, W_0)."""
        x = self.conv(image, "downsample.0", 2 if self.downsample_times >= 1 else 1)
        x = F.relu(self.batch_norm(x, "downsample.1"))
        x = self.conv(x, "downsample.3", 2 if self.downsample_times >= 2 else 1)
        x = F.relu(self.batch_norm(x, "downsample.4"))
        if "stage0.0.weight" in self.tensors:
            x = F.relu(self.batch_norm(self.conv(x, "stage0.0"), "stage0.1"))
        return x

    def zero_state(self, u: Tensor) -> list[Tensor]:
        """z = 0 at every scale, each half as high and wide as the one before."""
        batch, _, height, width = u.shape
        state = []
        for i in range(self.scales):
            gain = self.tensors[f"{self.stage}.branches.{i}.blocks.0.gn2.weight"]
            state.append(u.new_zeros(batch, len(gain), height, width))
            height, width = height // 2, width // 2
        return state

    def bind(self, u: Tensor) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """z -> f(z, u)."""
        return lambda z: self.f(z, u)

    def f(self, z: Sequence[Tensor], u: Tensor) -> list[Tensor]:
        """One evaluation of f; the injection enters at scale 0 only."""
        r = [self.block(i, zi, u if i == 0 else None) for i, zi in enumerate(z)]
        if len(z) == 1:
            return r
        result = []
        for i in range(len(z)):
            s = r[0] if i == 0 else self.carry(r[0], 0, i)
            for j in range(1, len(z)):
                s = s + (r[j] if i == j else self.carry(r[j], j, i))
            post = f"{self.stage}.post_fuse_layers.{i}"
            y = self.conv(F.relu(s), f"{post}.conv")
            result.append(self.group_norm(y, f"{post}.gnorm", self.groups // 2))
        return result

    def block(self, i: int, z: Tensor, u: Tensor | None) -> Tensor:
        """The residual block of scale ``i``."""
        name = f"{self.stage}.branches.{i}.blocks.0"
        a = F.relu(self.group_norm(self.conv(z, f"{name}.conv1"), f"{name}.gn1", self.groups))
        b = self.conv(a, f"{name}.conv2")
        if u is not None:
            b = b + u
        b = self.group_norm(b, f"{name}.gn2", self.groups)
        return self.group_norm(F.relu(b + z), f"{name}.gn3", self.groups)

    def carry(self, x: Tensor, j: int, i: int) -> Tensor:
        """What scale ``j`` hands to scale ``i``."""
        name = f"{self.stage}.fuse_layers.{i}.{j}.net"
        if j > i:  # coarse to fine
            x = self.group_norm(self.conv(x, f"{name}.conv"), f"{name}.gnorm", self.groups)
            return F.interpolate(x, scale_factor=float(2 ** (j - i)), mode="nearest")
        for k in range(i - j):  # fine to coarse
            x = self.conv(F.relu(x) if k else x, f"{name}.{k}.conv", stride=2)
            x = self.group_norm(x, f"{name}.{k}.gnorm", self.groups)
        return x

    def readout(self, z: Sequence[Tensor]) -> Tensor:
        """Logits: (B, classes), or (B, classes, H_0, W_0) for segmentation."""
        if "last_layer.0.weight" in self.tensors:
            size = tuple(z[0].shape[2:])
            full = [
                F.interpolate(zi, size, mode="bilinear", align_corners=True) if i else zi
                for i, zi in enumerate(z)
            ]
            y = self.conv(torch.cat(full, dim=1), "last_layer.0")
            return self.conv(F.relu(self.batch_norm(y, "last_layer.1")), "last_layer.3")
        y = self.widen(0, z[0])
        for i in range(1, len(z)):
            name = f"downsamp_modules.{i - 1}"
            down = F.relu(self.batch_norm(self.conv(y, f"{name}.0", stride=2), f"{name}.1"))
            y = self.widen(i, z[i]) + down
        y = F.relu(self.batch_norm(self.conv(y, "final_layer.0"), "final_layer.1"))
        weight, bias = self.get("classifier.weight"), self.get("classifier.bias")
        assert weight is not None
        return F.linear(y.mean(dim=(2, 3)), weight, bias)

    def widen(self, i: int, x: Tensor) -> Tensor:
        """The bottleneck that widens scale ``i`` for the classifier."""
        name = f"incre_modules.{i}.0"
        y = F.relu(self.batch_norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
        y = F.relu(self.batch_norm(self.conv(y, f"{name}.conv2"), f"{name}.bn2"))
        y = self.batch_norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        shortcut = self.conv(x, f"{name}.downsample.0")
        return F.relu(y + self.batch_norm(shortcut, f"{name}.downsample.1"))
