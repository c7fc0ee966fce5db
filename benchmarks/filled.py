"""Weights for any registered configuration that are nobody's: drawn, with nothing at a default.

Their plain iteration need not converge, and rounding grows from step to step: the hard case for a
comparison.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from edge_mdeq.bundle import SolverCurve, Verification
from edge_mdeq.config import InputConfig, ModelCard, Provenance
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup
from edge_mdeq.weights import save_weights

__all__ = ["filled", "save_filled", "ungated"]


def filled(name: str, seed: int = 0) -> tuple[MDEQ, InputConfig]:
    """A registered model with kernels of N(0, 1 / fan-in) and uniform everything else, in eval."""
    entry = lookup(name)
    generator = torch.Generator().manual_seed(seed)
    model = MDEQ(entry.model)
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if value.dtype != torch.float32:
                continue
            drawn = torch.rand(value.shape, generator=generator)
            if key.endswith("gain"):
                value.copy_(0.6 + 0.6 * drawn)
            elif value.ndim >= 2:
                normal = torch.randn(value.shape, generator=generator)
                value.copy_(normal / value[0].numel() ** 0.5)
            elif key.endswith(("weight", "running_var")):
                value.copy_(0.5 + drawn)
            else:
                value.copy_(0.4 * drawn - 0.2)
    nn.Module.eval(model)
    return model, entry.input


def ungated(
    name: str,
    out: Path,
    size: tuple[int, int],
    iterations: tuple[int, ...],
    solver: str = "fixed_point",
    options: dict[str, int] | None = None,
    int8: bool = False,
) -> None:
    """A bundle of drawn weights that nothing was measured on: neither parity, nor times.

    With ``int8`` its layers are all integer, whatever the equilibrium makes of it.

    For what depends on the graphs alone. A user's export always passes the gate.
    """
    from mdeq_export import exporter

    curve = SolverCurve(solver, dict(options or {}), 1.0, (1.0,), (1.0,), (0.0,))
    settings = exporter.ExportSettings(
        iterations=iterations,
        solver=solver,
        solver_settings=dict(options or {}),
        size=(size[0], size[1]),
        int8=int8,
        refine=0,
    )

    def undecided(
        model: MDEQ, config: InputConfig, settings: object, images: Any, progress: object
    ) -> tuple[exporter.Plan, dict[bytes, Any]]:
        goals = exporter.equilibria(model, config, images) if int8 else []
        known = {image.tobytes(): goal for image, goal in zip(images, goals, strict=False)}
        return exporter.Plan(curve, (curve,), curve, iterations, 0.0), known

    skipped: dict[str, Any] = {
        "decide": undecided,
        "verify": lambda *_, **__: Verification(0, "none", {}, 0, 0.0, "none", ()),
        "measure_times": lambda *_: {},
        "write_report": lambda *_: None,
    }
    with tempfile.TemporaryDirectory() as folder, patch.multiple(exporter, **skipped):
        save_filled(name, Path(folder))
        exporter.export_bundle(Path(folder), out, settings)


def save_filled(name: str, folder: Path) -> None:
    """Write drawn weights of a registered model into ``folder``."""
    entry = lookup(name)
    model, config = filled(name)
    origin = Provenance(name, "CC0-1.0", "random numbers")
    card = ModelCard(entry.model, config, entry.labels, entry.palette, origin)
    save_weights(model, card, folder / f"{name}.safetensors")
