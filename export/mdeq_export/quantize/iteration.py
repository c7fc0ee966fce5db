"""A solve evaluation by evaluation, each in a precision of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from mdeq_export.compose import IMAGE, INJECTION, Pieces, advance_model, inject_model, state_names

__all__ = ["Iteration", "session_of"]

Array = NDArray[Any]
Feeds = dict[str, Array]


def session_of(model: ir.Model) -> ort.InferenceSession:
    """A model in memory, opened in ONNX Runtime as the runtime would have it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    ir.external_data.load_to_model(model)  # what lies in a file has no folder to be found in
    raw = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


class Iteration:
    """The solver's steps on pieces; one image at a time.

    Args:
        pieces: lowered.
        like: an iteration whose injection and full precision are the same, to share its sessions.
    """

    def __init__(self, pieces: Pieces, like: Iteration | None = None) -> None:
        self.inject: ort.InferenceSession = (
            like.inject if like else session_of(inject_model(pieces))
        )
        self.advance: dict[str, ort.InferenceSession] = dict(like.advance) if like else {}
        if "fp32" not in self.advance:
            self.advance["fp32"] = session_of(advance_model(pieces, 1))
        if pieces.int8_cell is not None:
            self.advance["int8"] = session_of(advance_model(pieces, 1, "int8"))
        given = self.advance["fp32"].get_inputs()[1:]
        self.shapes = {each.name: [1, *each.shape[1:]] for each in given}
        self.names = state_names(pieces.scales)
        outputs = [each.name for each in self.advance["fp32"].get_outputs()]
        values = state_names(pieces.scales, "value")
        self.values = values if values[0] in outputs else state_names(pieces.scales, "next_state")
        self.outputs = outputs

    def injection(self, image: NDArray[np.uint8]) -> Array:
        """u of an image (H, W, 3) uint8 RGB."""
        (u,) = self.inject.run([INJECTION], {IMAGE: image[None]})
        return np.asarray(u)

    def start(self, state: list[Array] | None = None) -> Feeds:
        """Zero or a state, with an empty history."""
        feeds = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        return feeds | (dict(zip(self.names, state, strict=True)) if state is not None else {})

    def state(self, feeds: Feeds) -> list[Array]:
        """The iterate."""
        return [feeds[name] for name in self.names]

    def step(self, u: Array, feeds: Feeds, precision: str = "fp32") -> tuple[list[Array], Feeds]:
        """f at the iterate, and where the solve goes on."""
        values = self.advance[precision].run(self.outputs, {INJECTION: u} | feeds)
        found = dict(zip(self.outputs, values, strict=True))
        return [found[name] for name in self.values], {n: found[f"next_{n}"] for n in feeds}

    def solve(
        self, u: Array, precisions: Iterable[str], start: list[Array] | None = None
    ) -> list[Array]:
        """f at the last iterate of as many evaluations as there are precisions."""
        feeds = self.start(start)
        value: list[Array] = []
        for precision in precisions:
            value, feeds = self.step(u, feeds, precision)
        return value
