"""The key names of the published codes, and what stands between them and ours.

Three layouts are known:
- "v1", locuslab/mdeq: f is ``fullstage``, with an unsynchronised copy of it for the backward pass
  (``fullstage_copy``) and aliases of both (``deq.func``, ``deq.func_copy``);
- "v2", locuslab/deq, MDEQ-Vision: the same names without copies;
- "torchdeq", locuslab/torchdeq, deq-zoo/mdeq: f is ``full_stage``; which of its convolutions are
  weight-normed differs between its CIFAR and its ImageNet model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from edge_mdeq.checkpoints.reading import read_tensors
from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import WeightsError
from edge_mdeq.model import MDEQ

__all__ = ["Checkpoint", "Layout", "expected_keys", "is_there", "listing", "open_checkpoint"]

Layout = Literal["v1", "v2", "torchdeq"]

LISTED = 30  # culprits that a message names before it only counts

PREFIXES = ("module.", "model.")  # of nn.DataParallel, and of the segmentation training wrapper
# Copies and aliases of f, and the class weights of the loss: no part of the model.
DROPPED = re.compile(r"(fullstage_copy|deq|loss)\.")
# torch's own newer spelling of weight norm.
RESPELT = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, without wrappers, prefixes and copies, otherwise as it was found.

    Attributes:
        path: the file.
        layout: whose key names these are.
        tensors: by key, with weight norm as it was stored.
        spelling: how the file spells a key, where that differs.
        dropped: keys that are no part of the model.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, Tensor]
    spelling: Mapping[str, str]
    dropped: tuple[str, ...]

    @property
    def stage(self) -> str:
        """The name of f."""
        return "full_stage" if self.layout == "torchdeq" else "fullstage"


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file and recognise its layout.

    Raises:
        WeightsError: it cannot be read (see ``reading``), or is of no known MDEQ.
    """
    tensors: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    dropped = []
    for original, tensor in read_tensors(path).items():
        key = bare_name(original)
        if DROPPED.match(key):
            dropped.append(key)
            continue
        if key in tensors:
            raise WeightsError(
                f"{path} holds {key} twice, as {spelling.get(key, key)} and as {original}; it "
                "seems to hold two models, save one"
            )
        tensors[key] = tensor
        if key != original:
            spelling[key] = original
    return Checkpoint(path, recognise(path, tensors, dropped), tensors, spelling, tuple(dropped))


def bare_name(key: str) -> str:
    """``key`` without prefixes, in the old spelling of weight norm."""
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    for new, old in RESPELT.items():
        if key.endswith(new):
            key = key.removesuffix(new) + old
    return key


def recognise(path: Path, keys: Iterable[str], dropped: Iterable[str]) -> Layout:
    """Whose key names these are."""
    keys, copies = list(keys), [key for key in dropped if not key.startswith("loss.")]
    if any(key.startswith("fullstage.") for key in keys):
        return "v1" if copies else "v2"
    if any(key.startswith("full_stage.") for key in keys):
        return "torchdeq"
    if any(key.startswith(("cell.", "inject.")) for key in keys):
        raise WeightsError(
            f"{path} has edge-mdeq's own keys; it needs no import, only its .json beside it"
        )
    if copies:
        raise WeightsError(
            f"{path} holds copies of f only ({len(copies)} keys such as {copies[0]}), which the "
            "published code leaves unsynchronised; the weights themselves, fullstage.*, are missing"
        )
    raise WeightsError(
        f"{path} is not a checkpoint of an MDEQ: none of its {len(keys)} keys begins with "
        f"fullstage. or full_stage.; it has {listing(keys, 10)}"
    )


def listing(keys: Iterable[str], limit: int = LISTED) -> str:
    """Up to ``limit`` keys in their order, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


RENAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"inject\.stem\.", "downsample."),
        (r"inject\.transform\.", "stage0."),
        (r"cell\.blocks\.(\d+)\.conv", r"{f}.branches.\1.blocks.0.conv"),
        (r"cell\.blocks\.(\d+)\.norm", r"{f}.branches.\1.blocks.0.gn"),
        (r"cell\.post\.(\d+)\.conv\.", r"{f}.post_fuse_layers.\1.conv."),
        (r"cell\.post\.(\d+)\.norm\.", r"{f}.post_fuse_layers.\1.gnorm."),
        (r"readout\.widen\.(\d+)\.conv", r"incre_modules.\1.0.conv"),
        (r"readout\.widen\.(\d+)\.norm", r"incre_modules.\1.0.bn"),
        (r"readout\.widen\.(\d+)\.shortcut\.", r"incre_modules.\1.0.downsample."),
        (r"readout\.down\.", "downsamp_modules."),
        (r"readout\.final\.", "final_layer."),
        (r"readout\.classifier\.", "classifier."),
        (r"readout\.last\.", "last_layer."),
    )
)
FUSE = re.compile(r"cell\.fuse\.(\d+)\.(\d+)\.(\d+)\.(.*)")


def expected_keys(config: ModelConfig, stage: str) -> dict[str, str]:
    """Our keys of a model with ``config``, and the published name of each.

    A convolution's published name ends in ``.weight``, whether a file stores it whole or as
    ``weight_g`` and ``weight_v``; our separate ``gain`` of such a pair is left out.
    """
    n = config.scales  # names do not depend on widths, so the narrowest model tells them
    narrow = replace(
        config, classes=2, channels=(config.groups,) * n, expansion=1, head_channels=(1,) * n,
        final_channels=1,
    )  # fmt: skip
    return {
        ours: published_name(ours, stage)
        for ours in MDEQ(narrow).state_dict()
        if not ours.endswith(".gain")
    }


def is_there(key: str, tensors: Container[str]) -> bool:
    """Whether ``key`` is stored, whole or as the two halves of weight norm.

    Files of torch before 0.4.1 do not count batches; nothing depends on that number.
    """
    if key.endswith(".num_batches_tracked"):
        return True
    return key in tensors or (f"{key}_g" in tensors and f"{key}_v" in tensors)


def published_name(ours: str, stage: str) -> str:
    """The published key of our ``ours``; see ``expected_keys``."""
    fuse = FUSE.fullmatch(ours)
    if fuse:
        i, j, position, leaf = fuse.groups()
        step, layer = divmod(int(position), 3)  # convolution, norm, ReLU
        place = "net" if int(j) > int(i) else f"net.{step}"
        return f"{stage}.fuse_layers.{i}.{j}.{place}.{('conv', 'gnorm')[layer]}.{leaf}"
    for pattern, name in RENAMED:
        if pattern.match(ours):
            return pattern.sub(name.format(f=stage), ours, count=1)
    raise KeyError(ours)
