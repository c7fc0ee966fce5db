"""Weights on disk: NAME.safetensors with its NAME.json beside it. Never a pickle.

Two files cannot take their places at once. So the first one says in its metadata what the second
one will be, and which one it replaces: a writer that was killed in between is recognised.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from edge_mdeq.config import ModelCard, decode_card, encode_card, read_card
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.files import make_folder, replacing
from edge_mdeq.model import MDEQ
from edge_mdeq.weights_path import resolve_weights

__all__ = ["load_card", "load_weights", "resolve_weights", "save_weights"]


def load_weights(path: Path) -> tuple[MDEQ, ModelCard]:
    """Read a model and its card; the model is in eval mode, on the CPU, not frozen.

    Raises:
        WeightsError: missing, truncated or foreign file; keys or shapes that do not match the
            config; values that are not finite. The message lists the first few culprits.
        ConfigError: the JSON beside it makes no sense.
    """
    weights, config = resolve_weights(path)
    card = load_card(path)
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(weights, error) from error
    with torch.device("meta"):  # a config of any size costs nothing before its weights are there
        expected = MDEQ(card.model).state_dict()
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
    model = MDEQ(card.model).eval()
    model.load_state_dict(tensors)
    return model, card


def load_card(path: Path) -> ModelCard:
    """Read the card of weights alone.

    That is the JSON beside them, or, if their writer was killed before it got there, what it was to
    be.

    Raises:
        WeightsError, ConfigError: as ``load_weights``.
    """
    weights, config = resolve_weights(path)
    try:
        with safe_open(weights, "pt") as file:
            metadata = file.metadata() or {}
        if "card" in metadata and metadata.get("replaces") == digest(config):
            return decode_card(metadata["card"].encode(), f"the card in {weights}")
    except (SafetensorError, OSError) as error:
        raise unreadable(weights, error) from error
    return read_card(config)


def unreadable(weights: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{weights} is not a readable safetensors file, or is truncated ({error})")


def digest(path: Path) -> str:
    """SHA-256 of a file; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if os.path.isfile(path) else ""


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
    place, text = path.with_suffix(".json"), encode_card(replace(card, model=model.config))
    try:
        make_folder(path.parent)
        metadata = {"format": "pt", "card": text.decode(), "replaces": digest(place)}
        with replacing(place) as config, replacing(path) as weights:
            config.write_bytes(text)
            weights.write_bytes(save(tensors, metadata))  # save_file has a temporary of its own
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path} ({error}); what was there is intact") from error
