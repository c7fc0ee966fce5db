"""The architecture of a checkpoint, from the shapes and the presence of its keys."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from edge_mdeq.checkpoints.layouts import Checkpoint, expected_keys, is_there, listing
from edge_mdeq.config import ModelConfig, Task
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.registry import Entry, same_architecture

__all__ = ["Architecture", "infer_architecture"]


@dataclass(frozen=True)
class Architecture:
    """What was inferred.

    Attributes:
        config: the architecture.
        entries: the registry's rows that have it, best match first; empty if it is a new one.
    """

    config: ModelConfig
    entries: tuple[Entry, ...]


class Shapes:
    """Looks for the extent of an axis under several keys, since any of them may be missing."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def extent(self, *places: tuple[str, int]) -> int:
        """The extent of the first (key, axis) that is there; convolutions may be weight-normed.

        Raises:
            KeyError: none is there.
        """
        for key, axis in places:
            stem = key.removesuffix(".weight")
            for name in (key, f"{stem}.weight_v"):
                tensor = self.tensors.get(name)
                if tensor is not None and tensor.ndim > axis:
                    return tensor.shape[axis]
        raise KeyError(" or ".join(key for key, _ in places))


def infer_architecture(
    checkpoint: Checkpoint, groups: int = 8, downsample_times: int | None = None
) -> Architecture:
    """Read everything that shapes and keys tell.

    The strides of the stem leave no trace in a checkpoint: they follow from the published row that
    has these shapes, or from ``downsample_times``.

    Args:
        checkpoint: the checkpoint.
        groups: groups of the norms in f; no shape shows them, every published model has 8.
        downsample_times: strided convolutions of the stem, where no published row tells.

    Raises:
        WeightsError: keys that tell the architecture are missing, it is one that edge-mdeq does
            not build, or the stem's strides remain unknown.
    """
    refuse_unsupported(checkpoint)
    try:
        config = read_config(checkpoint, groups)
    except KeyError as error:
        missing = missing_keys(checkpoint)
        raise WeightsError(
            f"{checkpoint.path} is incomplete: its {len(checkpoint.tensors)} keys do not tell its "
            f"architecture, for want of {error.args[0]}; at least {len(missing)} keys are missing: "
            f"{listing(missing)}"
        ) from error
    except ConfigError as error:
        raise WeightsError(
            f"{checkpoint.path}: {error}; groups show in no shape, give --groups if the model was "
            "trained with other than 8"
        ) from error
    entries = same_architecture(config)
    times = stem_strides(checkpoint.path, config, entries, downsample_times)
    entries = tuple(entry for entry in entries if entry.model.downsample_times == times)
    config = replace(config, downsample_times=times)
    if entries:
        best = entries[0].model
        config = replace(config, dropout=best.dropout, norm_momentum=best.norm_momentum)
    return Architecture(config, entries)


def read_config(checkpoint: Checkpoint, groups: int) -> ModelConfig:
    """The config, as far as the checkpoint tells; raises KeyError for what is missing."""
    shapes, f = Shapes(checkpoint.tensors), checkpoint.stage
    scales = count_scales(checkpoint)
    channels, inner = [], {}
    for i in range(scales):
        block, post = f"{f}.branches.{i}.blocks.0", f"{f}.post_fuse_layers.{i}"
        channels.append(
            shapes.extent(
                (f"{block}.conv2.weight", 0), (f"{block}.conv1.weight", 1),
                (f"{block}.gn2.weight", 0), (f"{block}.gn3.weight", 0),
                (f"{post}.conv.weight", 0), (f"{post}.gnorm.weight", 0),
            )
        )  # fmt: skip
        with contextlib.suppress(KeyError):  # one branch is enough
            inner[i] = shapes.extent(
                (f"{block}.conv1.weight", 0), (f"{block}.conv2.weight", 1),
                (f"{block}.gn1.weight", 0),
            )  # fmt: skip
    if not inner:
        raise KeyError(f"{f}.branches.0.blocks.0.conv1.weight")
    i, width = next(iter(inner.items()))
    expansion, remainder = divmod(width, channels[i])
    if remainder or not expansion:
        raise WeightsError(
            f"{checkpoint.path}: block {i} is {width} channels wide inside and {channels[i]} "
            "outside; edge-mdeq builds whole multiples only"
        )
    task = readout(checkpoint)
    if task is None:
        raise KeyError("a readout, incre_modules.* and classifier.*, or last_layer.*")
    classifier = task == "classification"
    head = [
        shapes.extent(
            (f"incre_modules.{i}.0.conv1.weight", 0), (f"incre_modules.{i}.0.conv2.weight", 0),
            (f"incre_modules.{i}.0.conv3.weight", 1), (f"incre_modules.{i}.0.bn1.running_var", 0),
        )
        for i in range(scales if classifier else 0)
    ]  # fmt: skip
    return ModelConfig(
        task=task,
        classes=shapes.extent(("classifier.weight", 0), ("classifier.bias", 0))
        if classifier
        else shapes.extent(("last_layer.3.weight", 0), ("last_layer.3.bias", 0)),
        channels=tuple(channels),
        expansion=expansion,
        groups=groups,
        downsample_times=0 if not has_transform(checkpoint) else 2,  # stem_strides decides
        head_channels=tuple(head),
        final_channels=shapes.extent(
            ("classifier.weight", 1), ("final_layer.0.weight", 0), ("final_layer.0.bias", 0)
        )
        if classifier
        else 0,
        post_norm_affine=has_affine_end(checkpoint),
        norm_momentum=0.1 if classifier else 0.01,
    )


def count_scales(checkpoint: Checkpoint) -> int:
    """n, from whichever key has the largest index."""
    pattern = re.compile(rf"{checkpoint.stage}\.(?:branches|fuse_layers|post_fuse_layers)\.(\d+)\.")
    found = [match for match in map(pattern.match, checkpoint.tensors) if match]
    return 1 + max((int(match[1]) for match in found), default=-1)


def readout(checkpoint: Checkpoint) -> Task | None:
    """What the model ends in; None if no key tells. Two readouts are one too many."""
    heads = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    classifier = any(key.startswith(heads) for key in checkpoint.tensors)
    segmenter = any(key.startswith("last_layer.") for key in checkpoint.tensors)
    if classifier and segmenter:
        raise WeightsError(
            f"{checkpoint.path} has the keys of two readouts, incre_modules.* and last_layer.*"
        )
    return "classification" if classifier else "segmentation" if segmenter else None


def has_affine_end(checkpoint: Checkpoint) -> bool:
    """Whether the norm that f ends in has a gain and a bias; the yaml files are no guide to it."""
    pattern = re.compile(rf"{checkpoint.stage}\.post_fuse_layers\.\d+\.gnorm\.")
    return any(map(pattern.match, checkpoint.tensors))


def missing_keys(checkpoint: Checkpoint) -> list[str]:
    """What is certainly missing where widths are unknown: names depend on few facts only."""
    scales = max(1, count_scales(checkpoint))
    task = readout(checkpoint)
    config = ModelConfig(
        task=task or "segmentation",
        classes=2,
        channels=(8,) * scales,
        downsample_times=2 if has_transform(checkpoint) else 0,
        head_channels=(1,) * scales,
        final_channels=1,
        post_norm_affine=has_affine_end(checkpoint),
    )
    return [
        key
        for ours, key in expected_keys(config, checkpoint.stage).items()
        if not is_there(key, checkpoint.tensors) and (task or not ours.startswith("readout."))
    ]


def has_transform(checkpoint: Checkpoint) -> bool:
    """Whether a 1x1 convolution stands between stem and injection."""
    return any(key.startswith("stage0.") for key in checkpoint.tensors)


def stem_strides(
    path: Path, config: ModelConfig, entries: tuple[Entry, ...], given: int | None
) -> int:
    """DOWNSAMPLE_TIMES: from the published row, the absence of stage0, or the user."""
    if not config.has_injection_transform:
        known = {0}  # only full resolution with at most two scales goes without stage0
    else:
        known = {entry.model.downsample_times for entry in entries}
    if len(known) == 1:
        (times,) = known
        if given is not None and given != times:
            why = entries[0].name if entries else "a model without stage0"
            raise WeightsError(
                f"{path}: --downsample-times {given} contradicts its keys, which are those of "
                f"{why} with {times}"
            )
        return times
    if given is None:
        raise WeightsError(
            f"{path}: channels {list(config.channels)}, head {list(config.head_channels)} and "
            f"{config.classes} classes are those of no published model, and how often the stem "
            "halves the image shows in no shape; give --downsample-times 0, 1 or 2 "
            "(DOWNSAMPLE_TIMES of its yaml)"
        )
    return given


def refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Variants that the second code could be configured for, and no published model uses."""
    deep = [key for key in checkpoint.tensors if key.startswith("downsample.DS")]
    if deep:
        raise WeightsError(
            f"{checkpoint.path} has a stem that halves more than twice (DOWNSAMPLE_TIMES above 2: "
            f"{listing(deep)}); no published model does, and edge-mdeq does not build it"
        )
    block = re.compile(rf"{checkpoint.stage}\.branches\.\d+\.blocks\.0\.conv[12]\.weight(_v)?")
    big = [
        f"{key} ({tensor.shape[2]}x{tensor.shape[3]})"
        for key, tensor in checkpoint.tensors.items()
        if block.fullmatch(key) and tensor.ndim == 4 and tuple(tensor.shape[2:]) != (3, 3)
    ]
    if big:
        raise WeightsError(
            f"{checkpoint.path} has {len(big)} kernels in its blocks that are not 3x3 "
            f"(BIG_KERNELS): {listing(big)}; no published model has, and edge-mdeq does not "
            "build it"
        )
    several = [
        key for key in checkpoint.tensors if re.search(r"\.branches\.\d+\.blocks\.[1-9]", key)
    ]
    if several:
        raise WeightsError(
            f"{checkpoint.path} has more than one block per branch (NUM_BLOCKS): "
            f"{listing(several)}; no published model has, and edge-mdeq does not build it"
        )
