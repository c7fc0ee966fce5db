"""Writes the figures of ``versus.py`` into docs/performance.md.

    python benchmarks/performance_page.py out/versus.json [--roofline out/roofline.json]
        [--page docs/performance.md]

Only what stands between the page's two markers is replaced, and the plot that it shows. The
machine is named by its cores and instructions. Every ratio has the interval of 95% of resampled
rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders.findings import claims, roofline_claims
from contenders.report import COLUMNS, draw, rows

from edge_mdeq.files import write_atomic

START, END = "<!-- figures: start -->", "<!-- figures: end -->"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLOT = "images/versus.svg"  # beside the page
METRICS = {"miou": "mean IoU", "accuracy": "accuracy"}


def main() -> None:
    """Replace the figures of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--roofline", type=Path, help="what roofline.py --json wrote, too")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    report = load(args.figures, "models")
    roofline = load(args.roofline, "operators") if args.roofline else None
    try:
        page = args.page.read_text()
        write_atomic(args.page, replaced(page, figures(report, roofline)).encode())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {args.page}: {error}")
    plot = args.page.parent / PLOT
    plot.parent.mkdir(exist_ok=True)
    draw(report, plot)
    print(f"wrote {args.page} and {plot}")


def load(path: Path, key: str) -> dict[str, Any]:
    """The figures of a file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path} cannot be read ({error}); measure first: see this script's help")
    if not isinstance(found, dict) or key not in found:
        sys.exit(f"error: {path} has no {key!r}; it was written by something else")
    return found


def replaced(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers.

    Raises:
        ValueError: the markers are not there, once and in order.
    """
    if page.count(START) != 1 or page.count(END) != 1 or page.index(START) > page.index(END):
        raise ValueError(f"it needs the lines {START} and {END}, once and in this order")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def figures(report: Mapping[str, Any], roofline: Mapping[str, Any] | None) -> str:
    """All that stands between the markers."""
    parts = [machine(report)]
    if any(
        contender["wall_ms"] for m in report["models"].values() for contender in m["contenders"]
    ):
        parts.append(f"![time of a frame, every contender]({PLOT})")
    for name, model in report["models"].items():
        parts += model_parts(name, model)
    goals = [
        str(claim) for name, model in report["models"].items() for claim in claims(name, model)
    ]
    if roofline is not None:
        goals += [str(claim) for claim in roofline_claims(roofline)]
    if goals:
        parts += ["### Goals", bullets(goals)]
    if roofline is not None:
        parts += roofline_parts(roofline)
    return "\n\n".join(parts)


def machine(report: Mapping[str, Any]) -> str:
    """Where it was measured, by cores and instructions."""
    found = report["machine"]
    cores, threads = found["cores"], report["threads"]
    software = ", ".join(f"{name} {version}" for name, version in report["software"].items())
    instructions = ", ".join(found["instructions"]) or "no vector instructions that matter"
    kept = "kept to as many cores" if report["pinned"] else "not kept to cores"
    return (
        f"Measured on {cores} {'core' if cores == 1 else 'cores'} of {found['system']} with "
        f"{instructions}; {threads} {'thread' if threads == 1 else 'threads'} each, {kept}. "
        f"{software}."
    )


def model_parts(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    """A model's heading, its table, and what should be known about it."""
    height, width = model["size"]
    yield f"### {name}, {height}x{width}"
    accuracy = model["accuracy"]
    metric = METRICS[accuracy["metric"]] if accuracy else ""
    told = [f"{model['rounds']} rounds"] if model["rounds"] else []
    told.append(f"the published solve has {model['published_evaluations']} evaluations")
    if accuracy:
        told.append(f"{metric} from {accuracy['source']}")
    said = "; ".join([*told, *model["notes"]])
    yield f"{said[0].upper()}{said[1:]}."
    columns = [metric or "metric" if column == "metric" else column for column in COLUMNS]
    empty = {k for k in range(1, len(columns)) if all(row[k] == "-" for row in rows(model))}
    kept = [k for k in range(len(columns)) if k not in empty]
    yield table([columns[k] for k in kept], [[row[k] for k in kept] for row in rows(model)])
    skipped = [f"{c['name']}: {c['skipped']}" for c in model["contenders"] if "skipped" in c]
    if skipped:
        yield "Not measured:"
        yield bullets(skipped)


def roofline_parts(roofline: Mapping[str, Any]) -> Iterator[str]:
    """Where the time of one evaluation goes."""
    yield f"### One evaluation of {roofline['model']}, {roofline['gflop']:.2f} GFLOP"
    for name, operators in roofline["operators"].items():
        whole = sum(o["ms"] for o in operators)
        yield f"{name}, {whole:.1f} ms while it is profiled:"
        yield table(
            ["operator", "count", "ms", "of all", "MB moved"],
            [
                [o["name"], str(o["count"]), f"{o['ms']:.2f}", f"{o['ms'] / whole:.0%}",
                 f"{o['bytes'] / 1e6:.1f}"]
                for o in operators
            ],
        )  # fmt: skip


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """As Markdown has it; all but the first column to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    main()
