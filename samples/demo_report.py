"""The demo's report: one HTML file with everything in it, readable without a network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np

from edge_mdeq.bundle import Manifest, open_bundle

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLD, WARM = "#d55e00", "#0072b2"
STRIP = 5  # frames side by side


def write_report(
    path: Path,
    bundle: Path,
    clip: Path,
    video: Path,
    lines: Path,
    summary: dict[str, Any],
    base_bytes: int,
) -> None:
    """Write the report of one run.

    Args:
        path: the HTML file.
        bundle, clip, video, lines: what ran, on what, and its two outputs.
        summary: what ``edge-mdeq run --json`` printed.
        base_bytes: peak memory of a bare interpreter with NumPy and OpenCV.
    """
    manifest = open_bundle(bundle).manifest
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    chosen = np.unique(np.linspace(0, len(results) - 1, STRIP).astype(int)).tolist()
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(PAGE).render(
        manifest=manifest,
        verification=manifest.verification,
        summary=summary,
        strip=list(
            zip(
                [results[i] for i in chosen],
                frames(clip, chosen),
                frames(video, chosen),
                strict=True,
            )
        ),
        charts=[over_time(results), histogram(results), memory(manifest, summary, base_bytes)],
        resets=[r for r in results if r["reason"]],
        clip=clip.name,
        above=(summary["peak_rss_bytes"] - base_bytes) / 1e6,
        total=summary["peak_rss_bytes"] / 1e6,
    )
    path.write_text(page, encoding="utf-8")


def frames(video: Path, indices: list[int]) -> list[str]:
    """Some frames of a video as data URIs."""
    capture, found = cv2.VideoCapture(str(video)), []
    for index in range(max(indices) + 1):
        ok, image = capture.read()
        if not ok:
            break
        if index in indices:
            found.append(data_uri(cv2.imencode(".jpg", image)[1].tobytes(), "image/jpeg"))
    capture.release()
    return found


def over_time(results: list[dict[str, Any]]) -> str:
    """Residual on a log scale and iterations, frame by frame."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    index = [r["index"] for r in results]
    colours = [WARM if r["warm"] else COLD for r in results]
    top.semilogy(index, [r["residual"] for r in results], lw=0.8, color="#999999")
    top.scatter(index, [r["residual"] for r in results], c=colours, s=9, zorder=3)
    top.set_ylabel("relative residual")
    top.set_title("convergence: blue frames started warm, orange ones cold", fontsize=10)
    bottom.bar(index, [r["iterations"] for r in results], color=colours, width=1)
    bottom.set_ylabel("evaluations")
    bottom.set_xlabel("frame")
    return svg(figure)


def histogram(results: list[dict[str, Any]]) -> str:
    """Milliseconds of the solve, cold and warm."""
    figure, axes = plt.subplots(figsize=(9, 2.5), layout="constrained")
    times = {
        name: [r["times"]["solve"] for r in results if r["warm"] is warm]
        for name, warm in (("warm", True), ("cold", False))
    }
    every = [t for part in times.values() for t in part]
    bins = np.linspace(0, np.percentile(every, 99) * 1.2, 60).tolist()
    for (name, part), colour in zip(times.items(), (WARM, COLD), strict=True):
        axes.hist(part, bins, color=colour, alpha=0.8, label=f"{name} ({len(part)})")
    axes.set_xlabel("solve, milliseconds per frame")
    axes.legend()
    return svg(figure)


def memory(manifest: Manifest, summary: dict[str, Any], base_bytes: int) -> str:
    """Peak memory of the process against what must be in it."""
    weights = max(sum(w.bytes for w in p.weights) for p in manifest.profiles.values())
    states = 2 * sum(4 * int(np.prod(s.shape)) for s in manifest.states)
    parts = {
        "bare interpreter, NumPy, OpenCV": base_bytes,
        "weights": weights,
        "states, twice": states,
        "ONNX Runtime, graph buffers, video, the rest": summary["peak_rss_bytes"]
        - base_bytes
        - weights
        - states,
    }
    figure, axes = plt.subplots(figsize=(9, 2.2), layout="constrained")
    left = 0.0
    for (name, size), colour in zip(parts.items(), ("#999999", WARM, COLD, "#009e73"), strict=True):
        axes.barh([0], size / 1e6, left=left, color=colour, label=f"{name}: {size / 1e6:.1f} MB")
        left += size / 1e6
    axes.set_yticks([])
    axes.set_xlabel("peak resident memory (VmHWM), MB")
    figure.legend(fontsize=8, ncols=2, loc="outside upper center")
    return svg(figure)


def svg(figure: Any) -> str:
    """A figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return data_uri(buffer.getvalue(), "image/svg+xml")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes for an ``img`` element."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ manifest.name }} on {{ clip }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
        color: #222 }
 img { max-width: 100%; display: block }
 .strip { display: grid; grid-template-columns: repeat({{ strip|length }}, 1fr); gap: .4rem }
 .strip small { color: #666 }
 table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: right;
        border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
 .scroll { overflow-x: auto }
</style>
<h1>{{ manifest.name }} on {{ clip }}</h1>
<p><b>{{ summary.frames }} frames</b> in {{ "%.1f"|format(summary.seconds) }} s,
{{ "%.2f"|format(summary.mean_iterations) }} evaluations a frame,
{{ "%.0f"|format(100 * summary.warm_share) }}% of them warm;
peak memory {{ "%.0f"|format(total) }} MB, {{ "%.0f"|format(above) }} MB above a bare interpreter
with NumPy and OpenCV.</p>
<h2>Frames and their segmentation</h2>
<div class="strip">
{% for result, before, after in strip %}<div><img src="{{ before }}" alt="frame {{ result.index }}">
<img src="{{ after }}" alt="its segmentation"><small>frame {{ result.index }}:
{{ result.iterations }} evaluations, residual {{ "%.3f"|format(result.residual) }}</small></div>
{% endfor %}</div>
<h2>Residual and iterations over time</h2><img src="{{ charts[0] }}" alt="convergence over time">
<p>Cold starts: {% for r in resets %}frame {{ r.index }} ({{ r.reason }}){{ ", " if not loop.last }}
{% endfor %}</p>
<h2>Latency</h2><img src="{{ charts[1] }}" alt="histogram of the solve's time">
<div class="scroll"><table><tr><th>stage</th><th>p50 ms</th><th>p90 ms</th><th>p99 ms</th></tr>
{% for name, p in summary.stages.items() %}<tr><td>{{ name }}</td><td>{{ "%.2f"|format(p.p50) }}</td>
<td>{{ "%.2f"|format(p.p90) }}</td><td>{{ "%.2f"|format(p.p99) }}</td></tr>{% endfor %}</table></div>
<h2>Memory</h2><img src="{{ charts[2] }}" alt="peak memory by part">
<h2>Parity</h2>
<p>Verified at export on {{ verification.images }} images ({{ verification.source }}) with
{{ verification.backend }}. The export error is graph against torch at the same solver and count; the
solver gap is that count against the converged solve (residual
{{ "%.0e"|format(verification.reference_residual) }}).</p>
<div class="scroll"><table><tr><th>evaluations</th><th>export error, states</th><th>equal pixels</th>
<th>solver gap, states</th><th>equal pixels</th><th>residual</th></tr>
{% for r in verification.rungs %}<tr><td>{{ r.evaluations }}</td>
<td>{{ "%.1e"|format(r.state_max_abs) }}</td><td>{{ "%.3f"|format(100*r.answer_agreement) }}%</td>
<td>{{ "%.1e"|format(r.solver_gap_state) }}</td>
<td>{{ "%.2f"|format(100*r.solver_gap_agreement) }}%</td><td>{{ "%.1e"|format(r.residual) }}</td></tr>
{% endfor %}</table></div>
<p>Weights: {{ manifest.provenance.data }}. Licence: {{ manifest.provenance.licence }}.</p>
</html>
"""
