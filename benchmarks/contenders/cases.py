"""The models that are compared on, and how their bundles and weights come about."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from contenders.base import Case
from edge_mdeq.registry import lookup

__all__ = ["MODELS", "make_case"]

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples" / "models"
MODELS = ("imagenet-small", "camvid-nano", "clothing-small", "cityscapes-small")
MEMORY_ONLY = {"cityscapes-small": (512, 1024)}  # at a size
DIGITS = 10  # of a digest
COUNTS = ("1", "2", "4", "8")
SAVE = (
    "import sys; from pathlib import Path; from filled import save_filled;"
    "save_filled(sys.argv[1], Path(sys.argv[2]))"
)
UNGATED = (
    "import sys, json; from pathlib import Path; from filled import ungated;"
    "name, out, size, counts, more = sys.argv[1:];"
    "ungated(name, Path(out), json.loads(size), json.loads(counts), **json.loads(more))"
)


def make_case(
    name: str,
    out: Path,
    threads: int,
    bundles: Mapping[str, Path],
    data: Mapping[str, Path],
    say: Callable[[str], None],
) -> tuple[Case, list[str]]:
    """A model with its weights and its bundle, which is exported unless it is there already.

    What is exported is kept by what it is made of: the exporter's code, and the weights.

    Args:
        name: of a sample model, or of a registered one, whose weights are drawn.
        out: folder for what is made.
        threads: of every contender.
        bundles: by model, one to take instead.
        data: by model, a labelled dataset, whose images calibrate int8.
        say: what is being done.

    Returns:
        The case, and what should be known about it.
    """
    notes: list[str] = []
    folder = out / f"{name}-{digest(name)}"
    for outdated in out.glob(f"{name}-{'?' * DIGITS}"):
        if outdated != folder:
            shutil.rmtree(outdated)
    folder.mkdir(parents=True, exist_ok=True)
    sample = SAMPLES / name
    weights = sample if sample.is_dir() else folder / "weights"
    if not weights.is_dir():
        say(f"{name}: drawing weights")
        weights.mkdir()
        call(SAVE, name, str(weights))
    if weights != sample:
        notes.append("its weights are drawn: times and memory are real, answers are not")
    bundle = bundles.get(name, folder / f"{name}.mdeq")
    if not bundle.is_dir():
        say(f"{name}: exporting")
        if weights == sample:
            notes += export(weights, bundle, data.get(name))
        else:
            draw(name, bundle)
        (folder / "notes.json").write_text(json.dumps(notes))
    elif (folder / "notes.json").is_file() and name not in bundles:
        notes = json.loads((folder / "notes.json").read_text())
    return Case(name, weights, bundle, folder, threads, name in MEMORY_ONLY), notes


def digest(name: str) -> str:
    """Of what an export depends on."""
    found = hashlib.sha256()
    files = [
        *ROOT.glob("export/**/*.py"),
        *ROOT.glob("edge_mdeq/*.py"),
        *ROOT.glob("edge_mdeq/solvers/*.py"),
    ]
    for path in sorted([*files, *(SAMPLES / name).glob("*.safetensors")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:DIGITS]


def draw(name: str, bundle: Path) -> None:
    """Export drawn weights: whether they converge, and as what, is nobody's concern."""
    known = lookup(name).input
    size = MEMORY_ONLY.get(name, (known.height, known.width))
    counts = (2,) if name in MEMORY_ONLY else tuple(map(int, COUNTS))
    more = {} if name in MEMORY_ONLY else {"int8": True}
    call(UNGATED, name, str(bundle), json.dumps(size), json.dumps(counts), json.dumps(more))


def export(weights: Path, bundle: Path, data: Path | None) -> list[str]:
    """``edge-mdeq export`` with int8 rungs, or without where these are refused; notes."""
    plain = ["export", str(weights), "-o", str(bundle), "--force", "-q", "--iterations", *COUNTS]
    images = [] if data is None else ["--data", str(training_images(data))]
    done = command(*plain, "--int8", *images)
    if not done.returncode:
        return []
    notes = [f"no int8: {last_line(done)}"]
    done = command(*plain)
    if done.returncode:
        sys.exit(last_line(done))
    return notes


def training_images(data: Path) -> Path:
    """The part of a dataset that may calibrate what its validation part judges."""
    return data / "train" if (data / "train").is_dir() else data


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_mdeq.cli", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def call(program: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, cwd=Path(__file__).parents[1]
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return (lines or done.stderr.strip().splitlines() or ["it failed"])[-1]
