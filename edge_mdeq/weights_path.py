"""Where weights lie. Without torch, so that a name that is none is said at once."""

from __future__ import annotations

import os
from pathlib import Path

from edge_mdeq.errors import WeightsError

__all__ = ["resolve_weights"]


def resolve_weights(path: Path) -> tuple[Path, Path]:
    """The ``.safetensors`` and ``.json`` that ``path`` (the former, or their folder) names.

    Raises:
        WeightsError: nothing there, another kind of file, or a folder with none or several.
    """
    if os.path.isdir(path):
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise WeightsError(f"{path} should hold exactly one .safetensors file, found: {names}")
        path = found[0]
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is not a .safetensors file; checkpoints of other formats (.pkl, .pth) are "
            f"never loaded as they are, bring it in first: edge-mdeq import {path} -o "
            f"{path.with_name(path.name.split('.')[0] + '.safetensors')}"
        )
    if not os.path.isfile(path):
        raise WeightsError(f"weights file {path} does not exist")
    return path, path.with_suffix(".json")
