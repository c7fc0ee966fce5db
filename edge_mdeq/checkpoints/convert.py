"""A recognised checkpoint becomes a model: every key is used, none is invented."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_mdeq.checkpoints.layouts import Checkpoint, expected_keys, is_there, listing
from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import WeightsError
from edge_mdeq.model import MDEQ, WeightNormConv2d

__all__ = ["build_model"]


def build_model(checkpoint: Checkpoint, config: ModelConfig) -> MDEQ:
    """The model with the checkpoint's weights, in eval mode, in float32.

    A convolution that is weight-normed in both takes over direction and gain as they are; one that
    is plain in the file and normed here gets its norm as gain; one that is normed in the file and
    plain here (TorchDEQ's fusion) is folded.

    Raises:
        WeightsError: keys are left over or missing, shapes or values make no sense; the message
            counts them and lists the first ones.
    """
    names = expected_keys(config, checkpoint.stage)
    check_keys(checkpoint, list(names.values()))
    model = MDEQ(config)
    wanted = model.state_dict()
    check_shapes(checkpoint, {key: wanted[ours].shape for ours, key in names.items()})
    check_values(checkpoint)
    normed = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, WeightNormConv2d)
    }
    state: dict[str, Tensor] = {}
    for ours, key in names.items():
        if ours in normed:
            state[ours], state[f"{ours.removesuffix('weight')}gain"] = split(checkpoint, key)
        else:
            state[ours] = whole(checkpoint, key)
    model.load_state_dict(state)
    check_kernels(checkpoint, model, names)
    return model.eval()


def whole(checkpoint: Checkpoint, key: str) -> Tensor:
    """The tensor of ``key``, with weight norm folded if it has any."""
    tensors = checkpoint.tensors
    if key in tensors:
        return own(tensors[key])
    if key.endswith(".num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    v, g = tensors[f"{key}_v"].double(), tensors[f"{key}_g"].double()
    return own(v * (g / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))))


def split(checkpoint: Checkpoint, key: str) -> tuple[Tensor, Tensor]:
    """Direction and gain of the convolution ``key``.

    The gain of a plain kernel is its norm. A row of zeros has no direction: with any direction and
    a gain of 0 it stays what it is.
    """
    tensors = checkpoint.tensors
    if f"{key}_v" in tensors:
        return own(tensors[f"{key}_v"]), own(tensors[f"{key}_g"])
    weight = own(tensors[key])
    gain = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.where(gain == 0, torch.ones_like(weight), weight), gain


def own(tensor: Tensor) -> Tensor:
    """A contiguous copy, in float32 if it is a float; the file's precision may be any."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(kind, copy=True).contiguous()


def check_keys(checkpoint: Checkpoint, keys: Sequence[str]) -> None:
    """Every key of the architecture is there, in one spelling, and there is no other."""
    tensors = checkpoint.tensors
    missing, used = [], set()
    for key in keys:
        if key in tensors:
            used.add(key)
        elif is_there(key, tensors):
            used |= {f"{key}_g", f"{key}_v"}
        elif f"{key}_v" in tensors:
            used.add(f"{key}_v")
            missing.append(f"{key}_g")
        elif f"{key}_g" in tensors:
            used.add(f"{key}_g")
            missing.append(f"{key}_v")
        else:
            missing.append(key)
    if not any(".post_fuse_layers." in key for key in keys):
        # With one scale the published code builds a post-fuse and never calls it.
        used |= {key for key in tensors if key.startswith(f"{checkpoint.stage}.post_fuse_layers.")}
    left = [checkpoint.spelling.get(key, key) for key in tensors if key not in used]
    problems = []
    if missing:
        problems.append(f"{len(missing)} keys are missing: {listing(missing)}")
    if left:
        problems.append(f"{len(left)} keys are left over: {listing(left)}")
    if problems:
        raise WeightsError(
            f"{checkpoint.path} ({len(tensors)} keys in the layout {checkpoint.layout}) is not "
            f"the whole of one MDEQ and nothing else; {'; '.join(problems)}"
        )


def check_values(checkpoint: Checkpoint) -> None:
    """Numbers only, all finite, no negative variance, no direction of length 0."""
    culprits: dict[str, list[str]] = {}

    def blame(reason: str, key: str) -> None:
        culprits.setdefault(reason, []).append(checkpoint.spelling.get(key, key))

    for key, tensor in checkpoint.tensors.items():
        counter = key.endswith(".num_batches_tracked")
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or counter):
            blame("are not dense float tensors", key)
        elif not bool(tensor.isfinite().all()):
            blame("hold NaN or infinity", key)
        elif key.endswith(".running_var") and bool((tensor < 0).any()):
            blame("hold a negative variance", key)
        elif key.endswith(".weight_v") and bool((tensor.flatten(1) == 0).all(dim=1).any()):
            blame(
                "hold a row of zeros, which has no direction, so that weight norm gives NaN "
                "(also in the code that wrote it)",
                key,
            )
    if culprits:
        parts = [f"{len(keys)} keys {why}: {listing(keys)}" for why, keys in culprits.items()]
        raise WeightsError(f"{checkpoint.path}: {'; '.join(parts)}")


def check_shapes(checkpoint: Checkpoint, shapes: dict[str, torch.Size]) -> None:
    """Every tensor has the shape that the architecture gives it."""
    problems = []
    for key, shape in shapes.items():
        gain = (*shape[:1], *[1] * (len(shape) - 1))
        for name, wanted in ((key, shape), (f"{key}_v", shape), (f"{key}_g", gain)):
            tensor = checkpoint.tensors.get(name)
            if tensor is not None and tensor.shape != wanted:
                problems.append(f"{name} is {tuple(tensor.shape)}, not {tuple(wanted)}")
    if problems:
        raise WeightsError(
            f"{checkpoint.path}: {len(problems)} tensors do not fit the architecture that the "
            f"other shapes show: {listing(problems)}"
        )


def check_kernels(checkpoint: Checkpoint, model: nn.Module, names: dict[str, str]) -> None:
    """No norm is so small or so large that dividing by it overflows."""
    bad = [
        names[f"{name}.weight"]
        for name, module in model.named_modules()
        if isinstance(module, WeightNormConv2d) and not bool(module.kernel().isfinite().all())
    ]
    if bad:
        raise WeightsError(
            f"{checkpoint.path}: weight norm overflows in float32 in {len(bad)} kernels: "
            f"{listing(bad)}"
        )
