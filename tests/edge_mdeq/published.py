"""Checkpoints as the published codes write them: keys and shapes from their state_dicts' patterns.

Written from the description of those state_dicts, not from the importer's tables, which they test.
"""

from __future__ import annotations

import zlib
from typing import Literal

import torch
from torch import Tensor

from edge_mdeq.config import ModelConfig

Layout = Literal["v1", "v2", "torchdeq-imagenet", "torchdeq-cifar"]
Shapes = dict[str, tuple[int, ...]]


def published_shapes(config: ModelConfig, layout: Layout) -> Shapes:
    """Every key of such a checkpoint and its shape, in the order of the model."""
    keys: Shapes = {}
    c0 = config.channels[0]
    for k, c_in in ((0, 3), (3, c0)):
        keys[f"downsample.{k}.weight"] = (c0, c_in, 3, 3)
        keys |= batch_norm(f"downsample.{k + 1}", c0)
    if config.has_injection_transform:
        keys["stage0.0.weight"] = (c0, c0, 1, 1)
        keys |= batch_norm("stage0.1", c0)
    stage = "full_stage" if layout.startswith("torchdeq") else "fullstage"
    normed = {
        "v1": {"blocks", "post"},
        "v2": {"blocks", "post"},
        "torchdeq-imagenet": {"blocks"},
        "torchdeq-cifar": {"blocks", "post", "fuse"},
    }[layout]
    f, copy = f_shapes(config, normed), f_shapes(config, set())
    keys |= {f"{stage}.{key}": shape for key, shape in f.items()}
    if layout == "v1":
        keys |= {f"fullstage_copy.{key}": shape for key, shape in copy.items()}
        keys |= {f"deq.func.{key}": shape for key, shape in f.items()}
        keys |= {f"deq.func_copy.{key}": shape for key, shape in copy.items()}
    return keys | head_shapes(config)


def f_shapes(config: ModelConfig, normed: set[str]) -> Shapes:
    """The keys of f; ``normed`` says which of its convolutions are weight-normed."""
    keys: Shapes = {}
    c, n = config.channels, config.scales

    def conv(part: str, name: str, shape: tuple[int, ...]) -> None:
        if part in normed:
            keys[f"{name}.weight_g"] = (shape[0], 1, 1, 1)
            keys[f"{name}.weight_v"] = shape
        else:
            keys[f"{name}.weight"] = shape

    def group_norm(name: str, width: int) -> None:
        keys[f"{name}.weight"] = keys[f"{name}.bias"] = (width,)

    for i, width in enumerate(c):
        block, inner = f"branches.{i}.blocks.0", config.expansion * width
        conv("blocks", f"{block}.conv1", (inner, width, 3, 3))
        group_norm(f"{block}.gn1", inner)
        conv("blocks", f"{block}.conv2", (width, inner, 3, 3))
        group_norm(f"{block}.gn2", width)
        group_norm(f"{block}.gn3", width)
    for i in range(n):
        for j in range(n):
            net = f"fuse_layers.{i}.{j}.net"
            if j > i:
                conv("fuse", f"{net}.conv", (c[i], c[j], 1, 1))
                group_norm(f"{net}.gnorm", c[i])
            for k in range(i - j):
                out = c[i] if k == i - j - 1 else c[j]
                conv("fuse", f"{net}.{k}.conv", (out, c[j], 3, 3))
                group_norm(f"{net}.{k}.gnorm", out)
    for i, width in enumerate(c):
        conv("post", f"post_fuse_layers.{i}.conv", (width, width, 1, 1))
        if config.post_norm_affine:
            group_norm(f"post_fuse_layers.{i}.gnorm", width)
    return keys


def head_shapes(config: ModelConfig) -> Shapes:
    """The keys of the readout."""
    keys: Shapes = {}
    if config.task == "segmentation":
        s = sum(config.channels)
        keys |= {"last_layer.0.weight": (s, s, 1, 1), "last_layer.0.bias": (s,)}
        keys |= batch_norm("last_layer.1", s)
        keys["last_layer.3.weight"] = (config.classes, s, 1, 1)
        keys["last_layer.3.bias"] = (config.classes,)
        return keys
    h, features = config.head_channels, config.final_channels
    for i, (width, c) in enumerate(zip(h, config.channels, strict=True)):
        name = f"incre_modules.{i}.0"
        for k, shape in enumerate(
            [(width, c, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], start=1
        ):
            keys[f"{name}.conv{k}.weight"] = shape
            keys |= batch_norm(f"{name}.bn{k}", shape[0], affine=False)
        keys[f"{name}.downsample.0.weight"] = (4 * width, c, 1, 1)
        keys |= batch_norm(f"{name}.downsample.1", 4 * width)
    for i in range(len(h) - 1):
        name = f"downsamp_modules.{i}"
        keys[f"{name}.0.weight"] = (4 * h[i + 1], 4 * h[i], 3, 3)
        keys[f"{name}.0.bias"] = (4 * h[i + 1],)
        keys |= batch_norm(f"{name}.1", 4 * h[i + 1])
    keys |= {"final_layer.0.weight": (features, 4 * h[-1], 1, 1), "final_layer.0.bias": (features,)}
    keys |= batch_norm("final_layer.1", features)
    return keys | {
        "classifier.weight": (config.classes, features),
        "classifier.bias": (config.classes,),
    }


def batch_norm(name: str, width: int, affine: bool = True) -> Shapes:
    """The keys of a batch norm."""
    learnt = {f"{name}.weight": (width,), f"{name}.bias": (width,)} if affine else {}
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**learnt, **statistics, f"{name}.num_batches_tracked": ()}


def published_checkpoint(config: ModelConfig, layout: Layout) -> dict[str, Tensor]:
    """Values for all keys, each from its name alone; aliases share storage, as in v1's files.

    The copies of v1 have values of their own: the published code leaves them out of step.
    """
    tensors: dict[str, Tensor] = {}
    for key, shape in published_shapes(config, layout).items():
        if key.startswith("deq.func_copy."):
            tensors[key] = tensors[key.replace("deq.func_copy", "fullstage_copy")]
        elif key.startswith("deq.func."):
            tensors[key] = tensors[key.replace("deq.func", "fullstage")]
        else:
            tensors[key] = value(key, shape)
    return tensors


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of a sensible size for what the key is."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(1234)
    if leaf == "weight_v" or (leaf == "weight" and len(shape) >= 2):
        fan = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator) / fan**0.5
    if leaf in ("weight_g", "weight", "running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    return 0.4 * torch.rand(shape, generator=generator) - 0.2
