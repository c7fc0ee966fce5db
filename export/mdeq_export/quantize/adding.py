"""int8 for a bundle that is being written: calibrated, chosen layer by layer, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Profile
from mdeq_export.answers import Answer
from mdeq_export.compose import Pieces
from mdeq_export.graphs import lower
from mdeq_export.profiles import TargetProfile, lookup_profile
from mdeq_export.quantize.calibrate import Calibration, calibrate, observe, quantised
from mdeq_export.quantize.rungs import add_int8

__all__ = ["SUMMARY", "Quantiser"]

SUMMARY = "graphs/calibration.json"
BASE = "ort-cpu"  # what ranges are observed in; they belong to the layers, not to a lowering

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Quantiser:
    """What is needed to add int8 to the profiles of a bundle.

    Attributes:
        pieces: as they were traced.
        images: (count, H, W, 3) RGB to calibrate on.
        goals: images with their converged answers in single precision, to judge on.
        counts: N of each rung.
        refine: evaluations in single precision at the end of a refined rung; 0: no such rungs.
        scores: whether the readout gives scores.
        folder: the bundle's.
        progress: told what is being done.
    """

    pieces: Pieces
    images: NDArray[np.uint8]
    goals: tuple[tuple[NDArray[np.uint8], Answer], ...]
    counts: tuple[int, ...]
    refine: int
    scores: bool
    folder: Path
    progress: Progress

    def add(self, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
        """``profiles`` with int8 and refined rungs; the summary is written into the bundle.

        Raises:
            DataError: a calibration image's solve diverges.
            ParityError: the equilibrium does not bear it.
            ExportError: a graph is not valid.
        """
        base = lower(self.pieces, lookup_profile(BASE))
        ranges = observe(base, self.images, self.scores, self.progress)
        found: dict[bool, Calibration] = {}
        extended = {}
        for name, profile in profiles.items():
            target = lookup_profile(name)
            symmetric = is_symmetric(target)
            if symmetric not in found:
                found[symmetric] = calibrate(
                    base, ranges, self.goals, self.counts, self.refine, symmetric,
                    self.progress,
                )  # fmt: skip
            chosen = found[symmetric]
            pieces = quantised(
                lower(self.pieces, target), ranges, chosen.names, chosen.readout, symmetric
            )
            extended[name] = add_int8(
                profile, pieces, target, self.counts, self.folder, self.refine, self.progress
            )
        summary = {name: found[is_symmetric(lookup_profile(name))] for name in profiles}
        raw = msgspec.json.format(msgspec.json.encode(summary), indent=1)
        (self.folder / SUMMARY).write_bytes(raw + b"\n")
        return extended


def is_symmetric(target: TargetProfile) -> bool:
    """Whether a target takes int8 activations around zero."""
    return target.int8 == "symmetric int8"
