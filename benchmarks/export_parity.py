"""Graphs against torch: every solver, every depth, trained weights and drawn ones.

    python benchmarks/export_parity.py [--weights samples/models/camvid-nano ...]
        [--filled cifar-tiny imagenet-small] [--solvers "fixed point" ...]
        [--counts 1 2 4 8 16 26] [--data FOLDER] [--images 2] [--half]

A row per model, solver and number of evaluations: the largest relative difference of the states,
cold and from the equilibrium, the residual's, the answers that are equal, and, where the states
differ by more than is allowed, how far torch in single precision is from double, and the largest
difference of any single step that starts from torch's own state. On generated scenes, or on
``--data``; what half precision changes on a whole validation set, for instance:

    python benchmarks/export_parity.py --half --weights samples/models/clothing-small --filled
        --solvers "fixed point" --counts 2 4 8 --data clothing/validation --images 341
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from filled import filled
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import RungParity
from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.weights import load_weights
from mdeq_export.graphs import write_profile
from mdeq_export.images import verification_images
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES
from mdeq_export.reference import TorchReference
from mdeq_export.verify import TOLERANCES, verify

SAMPLES = ["samples/models/camvid-nano", "samples/models/clothing-small"]
SOLVERS: dict[str, tuple[str, dict[str, float]]] = {
    "fixed point": ("fixed_point", {}),
    "damped 0.7": ("fixed_point", {"tau": 0.7}),
    "Anderson 3": ("anderson", {"m": 3}),
    "Anderson 5": ("anderson", {"m": 5}),
    "Broyden 8": ("broyden", {"m": 8}),
}


def parity(
    model: MDEQ,
    config: InputConfig,
    solver: str,
    counts: list[int],
    images: tuple[NDArray[np.uint8], str],
    precision: str,
) -> list[RungParity]:
    """Export one solver's ladder to a temporary folder and compare it."""
    name, settings = SOLVERS[solver]
    made, frozen = make_solver(name, **settings), model.freeze()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pieces = trace_pieces(frozen, config, made)
        profiles = {"ort-cpu": write_profile(pieces, PROFILES["ort-cpu"], counts, root, precision)}
        reference = TorchReference(frozen, config, made, best=False)
        report = verify(reference, profiles, root, *images, TOLERANCES)
    return list(report.rungs)


def main() -> None:
    """Print the table, model by model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="*", default=[p for p in SAMPLES if Path(p).exists()])
    parser.add_argument("--filled", nargs="*", default=["cifar-tiny", "imagenet-small"])
    parser.add_argument("--solvers", nargs="*", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 4, 8, 16, 26])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--half", action="store_true")
    args = parser.parse_args()
    models: dict[str, tuple[MDEQ, InputConfig]] = {}
    for path in args.weights:
        model, card = load_weights(Path(path))
        models[Path(path).name] = model, card.input
    models |= {f"{name}, drawn": filled(name) for name in args.filled}
    for name, (model, config) in models.items():
        images = verification_images(args.data, args.images, config.height, config.width)
        size = f"{config.height} x {config.width}"
        title = f"{name}, {size}, {len(images[0])} images of {images[1]}"
        table = Table(title=title, title_justify="left")
        for column in ("solver", "N", "states", "residual", "equal", "fp32 - fp64", "single step"):
            table.add_column(column, justify="left" if column == "solver" else "right")
        for solver in args.solvers:
            precision = "fp16" if args.half else "fp32"
            for rung in parity(model, config, solver, args.counts, images, precision):
                table.add_row(
                    solver,
                    str(rung.evaluations),
                    f"{rung.state_rel:.1e}",
                    f"{rung.residual_max_rel:.1e}",
                    f"{rung.answer_agreement:.3%}",
                    f"{rung.rounding:.1e}" if rung.rounding else "",
                    "" if rung.step_rel is None else f"{rung.step_rel:.1e}",
                )
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
