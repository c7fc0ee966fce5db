"""The page: tables, figures and pictures of a bundle in one HTML file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, RungParity
from edge_mdeq.bundle.measurements import REPORT, REPORT_DATA, read_measurements
from edge_mdeq.bundle.precision import precision_of, select
from edge_mdeq.errors import require
from edge_mdeq.files import write_atomic
from mdeq_export.compose import IMAGE, OUTPUT, RESIDUAL
from mdeq_export.cost import conv_macs, live_bytes, operators
from mdeq_export.report import plots
from mdeq_export.report.measurements import name_of
from mdeq_export.sessions import plain_session

__all__ = ["write_report"]

PICTURES = 2  # images that predictions are shown of
WIDEST = 512  # pixels of a picture on the page
MADE_UP = 40503  # spreads the classes without a colour over the colour cube


@dataclass(frozen=True)
class Row:
    """A rung: what was verified, what it costs, how long it took here."""

    parity: RungParity
    cost: Cost
    milliseconds: tuple[float, float, float] | None


@dataclass(frozen=True)
class Cost:
    """What a rung costs: multiply-adds, and bytes of its graph, its weights and its values."""

    profile: str
    precision: str
    evaluations: int
    macs: int
    graph_bytes: int
    weights_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Picture:
    """An image and the answer of every rung to it, as data URIs or words."""

    image: str
    answers: tuple[tuple[int, str, str, float], ...]  # evaluations, picture, words, residual


def write_report(path: Path, manifest: Manifest, images: NDArray[np.uint8], source: str) -> None:
    """Write ``report.html`` into the bundle at ``path``, which must hold the graphs.

    Beside it goes ``report.json`` with the numbers on it, but for those of a machine or of labelled
    data, which are in ``measurements.json``.

    Args:
        path: the bundle's folder.
        manifest: of it.
        images: (count, H, W, 3) RGB to show predictions of; the first few are used.
        source: where they come from, in a word.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "export", "writing a report")
    measured = read_measurements(path)
    name = next(iter(manifest.profiles))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (files("mdeq_export.report") / "report.html.j2").read_text(encoding="utf-8")
    plain = select(manifest.profiles[name], "fp32")
    graphs = {rung.evaluations: rung.graph for rung in plain.rungs}
    found = rows(path, manifest, measured)
    data = {
        "name": manifest.name,
        "verification": msgspec.to_builtins(manifest.verification),
        "cost": [asdict(row.cost) for row in found],
        "state_bytes": sum(4 * abs(math.prod(spec.shape)) for spec in manifest.states),
        "history_bytes": sum(4 * abs(math.prod(spec.shape)) for spec in manifest.history),
        "operators": {str(count): operators(path / graph) for count, graph in graphs.items()},
    }
    page = environment.from_string(template).render(
        manifest=manifest,
        report=manifest.verification,
        what="pixels" if manifest.task == "segmentation" else "images",
        rows=found,
        outputs=next((list(row.parity.outputs) for row in found if row.parity.outputs), []),
        data=data,
        measured=measured,
        profile=name,
        precisions={row.cost.precision for row in found},
        source=source,
        figures=figures(manifest, measured),
        pictures=pictures(path, manifest, graphs, images[:PICTURES]),
    )
    write_atomic(path / REPORT, page.encode())
    write_atomic(path / REPORT_DATA, json.dumps(data, indent=2).encode() + b"\n")


def rows(path: Path, manifest: Manifest, measured: Mapping[str, Any]) -> list[Row]:
    """One per rung that was verified.

    What is computed is the same in every profile, and is counted in the first, which has no
    operators whose shapes onnx cannot infer; multiply-adds in its graphs without integers.
    """
    first = next(iter(manifest.profiles.values()))
    plain = select(first, "fp32").rungs
    macs = {rung.evaluations: conv_macs(path / rung.graph) for rung in plain}
    live = {name_of(rung): live_bytes(path / rung.graph) for rung in first.rungs}
    found = []
    for parity in manifest.verification.rungs:
        profile, count = manifest.profiles[parity.profile], parity.evaluations
        same = (r for r in profile.rungs if precision_of(r) == parity.precision)
        rung = next(r for r in same if r.evaluations == count)
        times = None
        if measured.get("profile") == parity.profile:
            times = measured.get("milliseconds", {}).get(name_of(rung))
        cost = Cost(
            parity.profile,
            parity.precision,
            count,
            macs[count],
            (path / rung.graph).stat().st_size,
            sum(file.bytes for file in profile.weights),
            live[name_of(rung)],
        )
        found.append(Row(parity, cost, times))
    return found


def figures(manifest: Manifest, measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, SVG) of what there is to draw."""
    drawn = [
        ("Residual, mean over the images, shaded to the worst", plots.convergence(manifest)),
        ("Answers", plots.disagreement(manifest)),
    ]
    scores = measured.get("val", {})
    curves = {
        kind: {int(n): v for n, v in scores[kind].items()}
        for kind in ("cold", "warm")
        if scores.get(kind)
    }
    if curves:
        drawn.append(("Task metric", plots.metric(scores["metric"], curves)))
    return drawn


def pictures(
    path: Path, manifest: Manifest, graphs: Mapping[int, str], images: NDArray[np.uint8]
) -> list[Picture]:
    """Each image with the answer of every rung, from a cold start."""
    answers: list[list[tuple[int, str, str, float]]] = [[] for _ in images]
    batch = abs(manifest.input.tensor.shape[0])
    cold = {s.name: np.zeros((batch, *s.shape[1:]), s.dtype) for s in manifest.states}
    for count, graph in graphs.items():
        session = plain_session(path / graph)
        for image, into in zip(images, answers, strict=True):
            feeds = {IMAGE: np.stack([image] * batch), **cold}
            output, residual = session.run([OUTPUT, RESIDUAL], feeds)
            into.append((count, *shown(manifest, image, output[0]), float(residual[0])))
        del session  # not beside the next one
    both = zip(images, answers, strict=True)
    return [Picture(data_uri(image), tuple(into)) for image, into in both]


def shown(manifest: Manifest, image: NDArray[np.uint8], output: NDArray[Any]) -> tuple[str, str]:
    """A picture of a mask, or the words for scores."""
    if manifest.task == "segmentation":
        colours = palette(manifest)
        blend = 0.45 * image + 0.55 * colours[output]
        return data_uri(blend.astype(np.uint8)), ""
    best = np.argsort(output)[::-1][:3]
    names = manifest.labels or [f"class {k}" for k in range(len(output))]
    return "", ", ".join(f"{names[k]} {output[k]:.2f}" for k in best)


def palette(manifest: Manifest) -> NDArray[np.uint8]:
    """A colour per possible class."""
    codes = np.arange(256) * MADE_UP
    colours = np.stack([codes >> shift & 255 for shift in (0, 5, 10)], axis=1).astype(np.uint8)
    if manifest.palette:
        colours[: len(manifest.palette)] = manifest.palette
    return colours


def data_uri(image: NDArray[np.uint8]) -> str:
    """An RGB image as a data URI; JPEG, as noise and texture take ten times as much in PNG."""
    cv2 = require("cv2", "export", "drawing pictures")
    height, width = image.shape[:2]
    if width > WIDEST:
        size = (WIDEST, max(1, height * WIDEST // width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]))
    assert ok, "an 8-bit image of three channels can be encoded"
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
