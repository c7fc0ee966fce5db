"""Graphs of the default profile, written from pieces as the exporter does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edge_mdeq.bundle import Profile
from mdeq_export.compose import Pieces
from mdeq_export.graphs import write_profile
from mdeq_export.profiles import PROFILES


def write(pieces: Pieces, counts: Iterable[int], folder: Path) -> Profile:
    return write_profile(pieces, PROFILES["ort-cpu"], counts, folder)


def write_graphs(
    pieces: Pieces, counts: Iterable[int], folder: Path
) -> tuple[dict[int, Path], Path]:
    """The graph of each count, and the file of their weights."""
    profile = write(pieces, counts, folder)
    graphs = {rung.evaluations: folder / rung.graph for rung in profile.rungs}
    return graphs, folder / profile.weights[0].file
