"""A foreign checkpoint file becomes a flat mapping of keys to tensors. Nothing in it is executed.

Pickles are read with ``weights_only=True``: whatever is neither a tensor nor plain data is refused
before it is called.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edge_mdeq.errors import WeightsError

__all__ = ["file_digest", "read_tensors"]

# Under these names, beside epoch and optimizer, training scripts keep the weights.
WRAPPERS = ("state_dict", "model_state_dict", "model")


def harmless_numpy() -> list[Any]:
    """What pickled NumPy numbers consist of: a metric beside the weights is one. Only plain data.

    NumPy 2 moved the module, so the names in older files have to be given beside the objects.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, np.ndarray]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
    return allowed + [type(np.dtype(kind)) for kind in kinds]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read ``path`` (.pkl, .pth, .pth.tar, .pt, or .safetensors), on the CPU, and unwrap it.

    Raises:
        WeightsError: the file is missing, truncated, of another kind, needs code to be executed,
            or holds no mapping of names to tensors.
    """
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; name the checkpoint file in it")
    if not os.path.isfile(path):
        raise WeightsError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path} is not a readable safetensors file, or is truncated ({error})"
            ) from error
    return unwrap(path, read_pickle(path))


def read_pickle(path: Path) -> Any:
    """``torch.load`` that cannot execute anything, with errors that say what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storages; nothing a user can mend
            with torch.serialization.safe_globals(harmless_numpy()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(refusal(path, str(error))) from error
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        raise WeightsError(unreadable(path, error)) from error


def refusal(path: Path, message: str) -> str:
    """What the restricted reader did not accept, in our words."""
    name = next(
        (
            word.strip("`'\".,")
            for marker in ("GLOBAL ", "Unsupported global: GLOBAL ", "Unsupported class ")
            if marker in message
            for word in message.split(marker, 1)[1].split()[:1]
        ),
        "",
    )
    if name:
        return (
            f"{path} holds more than tensors and plain data (it asks for {name!r}) and was not "
            "read, since reading it could execute code. If you trust its origin, load it where it "
            "was made and save only model.state_dict() with torch.save"
        )
    return (
        f"{path} is not a checkpoint that can be read without executing it, or is damaged; save "
        "only model.state_dict() with torch.save"
    )


def unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that is no checkpoint, or no whole one."""
    if path.stat().st_size == 0:
        return f"{path} is empty"
    if tarfile.is_tarfile(path):
        return (
            f"{path} is a tar archive, the format of torch before 0.2, which cannot be read "
            "safely; load it with the torch that wrote it and save it again with a current one"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} is not a torch checkpoint, or is truncated ({reason})"


def unwrap(path: Path, value: Any) -> dict[str, Tensor]:
    """Find the mapping of names to tensors within what training scripts put around it."""
    while True:
        if not isinstance(value, Mapping):
            raise WeightsError(
                f"{path} holds a {type(value).__name__}, not a mapping of names to tensors"
            )
        inner = [name for name in WRAPPERS if isinstance(value.get(name), Mapping)]
        if not inner:
            break
        value = value[inner[0]]
    strange = [
        f"{key} ({type(item).__name__})"
        for key, item in value.items()
        if not (isinstance(key, str) and isinstance(item, Tensor))
    ]
    if strange or not value:
        found = f"holds {', '.join(strange[:10])}" if strange else "is empty"
        more = f" and {len(strange) - 10} more" if len(strange) > 10 else ""
        raise WeightsError(
            f"{path} {found}{more}; expected names of tensors only, at the top or under "
            f"{', '.join(map(repr, WRAPPERS))}"
        )
    return {key: tensor.detach() for key, tensor in value.items()}


def file_digest(path: Path) -> str:
    """SHA-256 of the file, so that a card can say exactly what it was made from."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
