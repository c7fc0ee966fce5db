"""What the published implementations computed with weights that key names alone determine.

``fill.py`` makes the weights, so that no checkpoint has to be kept; ``tiny_v1.npz`` and
``tiny_v2.npz`` hold the values of the two versions for CIFAR TINY.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup

CIFAR_TINY = lookup("cifar-tiny").model


def shared_reference() -> Path:
    """Where reference values lie, or skip."""
    beside = Path(__file__).parents[2].parent / "shared"
    folder = Path(os.environ.get("EDGE_MDEQ_SHARED", beside)) / "reference"
    if not (folder / "fill.py").is_file():
        pytest.skip(f"no reference values at {folder}; set EDGE_MDEQ_SHARED")
    return folder


RENAMED = (  # the published names, and ours
    (r"^downsample\.", "inject.stem."),
    (r"^fullstage\.branches\.(\d)\.blocks\.0\.", r"cell.blocks.\1."),
    (r"^fullstage\.fuse_layers\.(\d)\.(\d)\.net\.conv", r"cell.fuse.\1.\2.0"),
    (r"^fullstage\.fuse_layers\.(\d)\.(\d)\.net\.gnorm", r"cell.fuse.\1.\2.1"),
    (r"^fullstage\.fuse_layers\.1\.0\.net\.0\.conv", "cell.fuse.1.0.0"),
    (r"^fullstage\.fuse_layers\.1\.0\.net\.0\.gnorm", "cell.fuse.1.0.1"),
    (r"^fullstage\.post_fuse_layers\.(\d)\.", r"cell.post.\1."),
    (r"^incre_modules\.(\d)\.0\.downsample\.", r"readout.widen.\1.shortcut."),
    (r"^incre_modules\.(\d)\.0\.", r"readout.widen.\1."),
    (r"^downsamp_modules\.", "readout.down."),
    (r"^final_layer\.", "readout.final."),
    (r"^classifier\.", "readout.classifier."),
    (r"\.(gn|bn)(\d)\.", r".norm\2."),
    (r"\.gnorm\.", ".norm."),
    (r"\.weight_v$", ".weight"),
    (r"\.weight_g$", ".gain"),
)


def our_name(key: str) -> str:
    for pattern, ours in RENAMED:
        key = re.sub(pattern, ours, key)
    return key


def load_fill() -> ModuleType:
    """The reference's ``fill.py``, or skip."""
    path = shared_reference() / "fill.py"
    spec = importlib.util.spec_from_file_location("reference_fill", path)
    assert spec is not None
    assert spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return fill


def reference_checkpoint(version: str) -> dict[str, Tensor]:
    """The reference's whole state_dict, in its own keys, or skip."""
    fill = load_fill()
    keys = json.loads((shared_reference() / f"tiny_{version}.keys.json").read_text())
    return {key: fill.fill(key, shape) for key, shape in keys.items()}


def load_reference(version: str) -> tuple[MDEQ, Tensor, dict[str, Any]]:
    """CIFAR TINY with the weights of reference "v1" or "v2", its input and its values, or skip."""
    folder, fill = shared_reference(), load_fill()
    weights = {
        our_name(key): tensor
        for key, tensor in reference_checkpoint(version).items()
        if not key.startswith(("fullstage_copy.", "deq."))
    }
    model = MDEQ(replace(CIFAR_TINY, post_norm_affine=version == "v1")).eval()
    model.load_state_dict(weights)
    values = dict(np.load(folder / f"tiny_{version}.npz"))
    image = fill.image(int(values["image_seed"]), (2, 3, *values["hw"]))
    return model, image, values
