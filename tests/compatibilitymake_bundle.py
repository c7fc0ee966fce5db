"""Writes the small bundle that stands for this version's schema: run once per released schema.

    python tests/compatibility/make_bundle.py tests/compatibility/schema-N.mdeq

Beside it goes ``schema-N.json`` with what it answers today. Both are kept as they are for as long
as that schema is promised to load; a new schema gets a bundle of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COUNTS = (1, 2)


def image() -> NDArray[np.uint8]:
    """A BGR picture (20, 28, 3) by a formula, so that no library's decoder has a part in it."""
    y, x, c = np.mgrid[0:20, 0:28, 0:3]
    return ((x * 9 + y * 5 + c * 60 + x * y) % 256).astype(np.uint8)


def answers(bundle: Path) -> list[dict[str, object]]:
    """What the bundle says of it: scores and residual, cold, for each count."""
    from mdeq_runtime import FixedIterations, Model, SessionSettings

    found: list[dict[str, object]] = []
    for count in COUNTS:
        with Model(bundle, SessionSettings(FixedIterations(count)), threads=1, device="cpu") as m:
            result = m(image())
        scores = [round(float(score), 6) for score in result.output]
        found.append({"count": count, "scores": scores, "residual": result.residual})
    return found


def make(out: Path) -> None:
    """Export a classifier of a few hundred weights, without what tells of this machine."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import save_tiny

    from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
    from mdeq_export import ExportSettings, export_bundle

    config = ModelConfig(
        "classification", 3, (4, 4), expansion=1, groups=2, downsample_times=1,
        head_channels=(2, 2), final_channels=4,
    )  # fmt: skip
    card = ModelCard(
        config,
        InputConfig(16, 16),
        labels=("left", "middle", "right"),
        provenance=Provenance("compatibility", "CC0-1.0", "random numbers"),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = save_tiny(card, Path(folder) / "compatibility.safetensors", seed=3)
        export_bundle(weights, out, ExportSettings(iterations=COUNTS))
    for name in ("report.html", "report.json", "measurements.json"):
        (out / name).unlink(missing_ok=True)
    out.with_suffix(".json").write_text(json.dumps(answers(out), indent=2) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
