"""This project beside what one could run instead: times in turn in one process, and memory.

    python benchmarks/versus.py [--models imagenet-small ...] [--quick] [--data camvid-nano=CamVid]

On the same images, with the same number of threads, kept to as many cores: every rung, cold and
warm; PyTorch with Broyden's method and the published number of steps, ours and TorchDEQ's; f
compiled by torch.compile; a plain torch.onnx.export; OpenVINO on our graphs; ResNets, MobileNetV3
and EfficientNet-Lite0. What is not installed, or fails, is skipped with its reason. Each one's
memory is that of a process of its own, above the libraries that it needs. cityscapes-small is
there for its memory alone.

``--data`` names a labelled dataset by model: accuracies are measured on it, else they are the model
card's. ``--bundle NAME=PATH`` takes a bundle that is there. ``--resume`` keeps models that a run
before has finished. The figures go to OUT.json and OUT.svg; ``performance_page.py`` makes
docs/performance.md of them. The whole takes some ten minutes on two cores, once the exports and the
networks are made, which are kept in OUT as long as the exporter and the weights stay the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contenders import AbsentError, Case, Contender, lineup
from contenders.cases import MODELS, make_case
from contenders.findings import accuracy
from contenders.process import measure
from contenders.report import draw, print_model
from contenders.rounds import Entrant, compete, moving_scene
from rich.console import Console

from edge_mdeq.cli.progress import counting_bar
from edge_mdeq.files import write_atomic
from mdeq_runtime.bench.machine import describe_machine, pinned

SECONDS, QUICK_SECONDS = 60.0, 8.0  # of rounds, per model
SOFTWARE = ("torch", "onnxruntime", "openvino", "torchdeq")
COMPILED = "torch.compile"
KEPT = ("name", "kind", "precision", "start", "evaluations", "steps")


def main() -> None:
    """Measure model after model, and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--quick", action="store_true", help="few rounds, no torch.compile")
    parser.add_argument("--seconds", type=float, help=f"of rounds, per model; {SECONDS:g}")
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", type=named)
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=PATH", type=named)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/versus"))
    args = parser.parse_args()
    args.out = args.out.absolute()  # other processes run in another folder
    args.out.mkdir(parents=True, exist_ok=True)
    path, console = args.out.with_suffix(".json"), Console(width=130)
    seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    machine = describe_machine()
    with pinned(args.threads) as cores:
        head = {
            "format": "edge-mdeq-versus",
            "machine": machine,
            "threads": cores.threads,
            "pinned": list(cores.pinned),
            "software": {name: found for name in SOFTWARE if (found := installed(name))},
        }
        models: dict[str, Any] = {}
        if args.resume and path.is_file():
            before = json.loads(path.read_text())
            models = before["models"] if all(before[k] == head[k] for k in head) else {}
        for name in args.models:
            if name not in models:
                case, notes = make_case(
                    name, args.out, cores.threads, dict(args.bundle), dict(args.data), console.print
                )
                models[name] = compare(
                    case, notes, dict(args.data).get(name), seconds, args, console
                )
                text = json.dumps({**head, "models": models}, indent=1)
                write_atomic(path, text.encode() + b"\n")
            print_model(console, name, models[name])
    draw({**head, "models": models}, args.out.with_suffix(".svg"))
    console.print(f"wrote {path}, and a plot beside it where anything was timed")
    console.print(f"next: python benchmarks/performance_page.py {path}")


def named(text: str) -> tuple[str, Path]:
    """``NAME=PATH`` in parts."""
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path).absolute()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def compare(
    case: Case,
    notes: Sequence[str],
    data: Path | None,
    seconds: float,
    args: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Everything about one model, as it is kept."""
    contenders = lineup(case)
    if args.quick:
        contenders = [c for c in contenders if not c.name.startswith(COMPILED)]
    reasons: dict[str, str] = {}
    figures: dict[str, dict[str, Any]] = {}
    rounds = 0
    if not case.memory_only:
        entrants = prepare(contenders, reasons, case, console)
        with counting_bar(f"{case.name}: seconds", False) as progress:
            rounds = compete(entrants, moving_scene(case), seconds, progress)
        figures = {entrant.contender.name: entrant.figures() for entrant in entrants}
    memory = {} if args.no_memory else memories(case, contenders, reasons, console)
    console.print(f"{case.name}: accuracy")
    return {
        "size": list(case.size),
        "published_evaluations": case.published.evaluations,
        "notes": list(notes),
        "rounds": rounds,
        "accuracy": accuracy(case.bundle, data, case.threads),
        "contenders": [
            entry(c, figures.get(c.name), memory.get(memory_key(c)), reasons.get(c.name))
            for c in contenders
        ],
    }


def entry(
    contender: Contender,
    figures: dict[str, Any] | None,
    memory: dict[str, int] | None,
    reason: str | None,
) -> dict[str, Any]:
    """A contender as it is kept."""
    known = {f.name: getattr(contender, f.name) for f in fields(contender) if f.name in KEPT}
    nothing = {"wall_ms": [], "cpu_ms": None, "residual": None}
    found = {**known, **(figures or nothing), "memory": memory}
    return found if reason is None else {**found, "skipped": reason}


def prepare(
    contenders: Sequence[Contender], reasons: dict[str, str], case: Case, console: Console
) -> list[Entrant]:
    """Those that are here, ready and tried once; the others' reasons."""
    entrants, image = [], moving_scene(case)[0]
    with console.status("preparing") as status:
        for contender in contenders:
            status.update(f"{case.name}: preparing {contender.name}")
            try:
                entrant = Entrant(contender, contender.prepare())
                entrant.answer(image)
            except AbsentError as reason:
                reasons[contender.name] = str(reason)
                console.print(f"{case.name}: without {contender.name}: {reason}")
            else:
                entrants.append(entrant)
    return entrants


def memory_key(contender: Contender) -> str:
    """A cold and a warm start of a rung take the same."""
    return contender.name.removesuffix(", cold").removesuffix(", warm")


def memories(
    case: Case, contenders: Sequence[Contender], reasons: dict[str, str], console: Console
) -> dict[str, dict[str, int]]:
    """Of each that is here, in a process of its own."""
    found: dict[str, dict[str, int]] = {}
    chosen = [c for c in contenders if c.memory and c.name not in reasons]
    at_once = 1 if case.memory_only else case.threads  # which changes times, but no memory
    with (
        counting_bar(f"{case.name}: processes", False) as progress,
        ThreadPoolExecutor(at_once) as pool,
    ):
        asked = {pool.submit(measure, case, contender): contender for contender in chosen}
        for done, future in enumerate(as_completed(asked), 1):
            contender = asked[future]
            try:
                found[memory_key(contender)] = future.result()
            except AbsentError as reason:
                console.print(f"{case.name}: no memory of {contender.name}: {reason}")
            progress(done, len(chosen))
    return found


if __name__ == "__main__":
    main()
