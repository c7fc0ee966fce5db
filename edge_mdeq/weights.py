"""Weights on disk: NAME.safetensors with its NAME.json beside it. Never a pickle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from edge_mdeq.config import ModelCard, read_card, write_card
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.files import replacing
from edge_mdeq.model import MDEQ

__all__ = ["load_weights", "resolve_weights", "save_weights"]


def resolve_weights(path: Path) -> tuple[Path, Path]:
    """The ``.safetensors`` and ``.json`` that ``path`` (the former, or their folder) names.

    Raises:
        WeightsError: nothing there, another kind of file, or a folder with none or several.
    """
    if path.is_dir():
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
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    return path, path.with_suffix(".json")


def load_weights(path: Path) -> tuple[MDEQ, ModelCard]:
    """Read a model and its card; the model is in eval mode, on the CPU, not frozen.

    Raises:
        WeightsError: missing, truncated or foreign file; keys or shapes that do not match the
            config; values that are not finite. The message lists the first few culprits.
        ConfigError: the JSON beside it makes no sense.
    """
    weights, config = resolve_weights(path)
    card = read_card(config)
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{weights} is not a readable safetensors file, or is truncated ({error})"
        ) from error
    model = MDEQ(card.model).eval()
    expected = model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, config says {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if not problems:
        problems = [
            f"{key} holds NaN or infinity"
            for key, value in tensors.items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())
        ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise WeightsError(
            f"{weights} does not match its config {config}: {'; '.join(problems[:5])}{more}"
        )
    model.load_state_dict(tensors)
    return model, card


def save_weights(model: MDEQ, card: ModelCard, path: Path) -> None:
    """Write ``path`` (.safetensors) and the card beside it, each atomically.

    Both are written before either takes its place, so that a full disk leaves the old pair.

    Raises:
        WeightsError: the folder cannot be written.
        ConfigError: ``path`` has another suffix.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} must end in .safetensors")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as weights, replacing(path.with_suffix(".json")) as config:
            save_file(tensors, weights, metadata={"format": "pt"})
            write_card(replace(card, model=model.config), config)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path} ({error}); what was there is intact") from error
