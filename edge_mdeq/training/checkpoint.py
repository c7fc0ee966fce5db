"""The state of a run after an epoch, so that a killed run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edge_mdeq.errors import WeightsError
from edge_mdeq.files import replacing
from edge_mdeq.training.interrupts import uninterrupted

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, containers) atomically.

    Raises:
        WeightsError: the disk is full or the folder not writable; the previous one survives.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file, uninterrupted():
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ or error  # torch hides the system's reason behind its own
        raise WeightsError(
            f"cannot write the checkpoint {path} ({cause}); the previous one, if any, is intact: "
            "make room and go on with --resume"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote; nothing in it can execute code.

    Raises:
        WeightsError: missing or unreadable.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no checkpoint at {path}; start without --resume") from error
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise WeightsError(f"{path} is not a readable checkpoint ({error})") from error
    return state
