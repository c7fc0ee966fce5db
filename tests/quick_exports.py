"""What makes exports quick where a test looks at something else.

Each goes around exports, or on top of a test as its decorator.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

TRACED: dict[bytes, ir.Graph] = {}  # by module, its weights, and the shapes of its inputs


@contextmanager
def two_images() -> Iterator[None]:
    """Exports measure and verify on two images, where eight would show no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdeq_export.exporter.VERIFICATION_IMAGES", 2)
        yield


@contextmanager
def traced_once() -> Iterator[None]:
    """A module is traced once for the same inputs: that takes half of an export's time."""
    from torch.utils._pytree import tree_flatten

    from mdeq_export import pieces

    trace = pieces.trace

    @functools.wraps(trace)
    def recall(module: nn.Module, args: tuple[object, ...], dynamic: bool = False) -> ir.Graph:
        leaves, structure = tree_flatten(args)
        inputs = str([structure, *((tuple(x.shape), x.dtype) for x in leaves), dynamic])
        key = hashlib.sha256(pickle.dumps(module) + inputs.encode()).digest()
        if key not in TRACED:
            TRACED[key] = trace(module, args, dynamic)
        return TRACED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "trace", recall)
        yield
