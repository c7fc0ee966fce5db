"""Predicted and measured: the peak of a process under a memory limit, for models of many sizes.

    python benchmarks/memory_plan.py [--only NAME ...] [--fitted] [--enforce]
    python benchmarks/memory_plan.py --bundle BUNDLE [--precision int8] [--enforce]

Each row is a process that opens a bundle under a limit, answers four frames and tells what was
predicted and its peak (VmHWM). The planner's constants were fitted on the models of ``--fitted``;
the others are what they are judged on. The bundles hold drawn weights and are made without the
parity gate, which says nothing of memory. With ``--enforce`` each process runs once more in a
control group that has no more than was predicted (as root), and it runs once with 10% less, which
must be refused. A bundle that is there already is measured with its rungs of one and eight
evaluations, and in parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
bundle, form, cache, limit, precision = sys.argv[1:6]
policy = UntilTolerance(1e-9, max_iterations=4) if form == "parts" else FixedIterations(int(form))
settings = SessionSettings(policy, reset_on_cut=False, restart_above=1e9, precision=precision)
with Model(Path(bundle), settings, cache=cache or None, memory_limit=limit) as model:
    with model.session() as session:
        shape = (*model.manifest.input.size, 3)
        for seed in range(4):
            session(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
        print(json.dumps([model.memory().predicted, model.memory().measured]))
"""
MAKE = """
import json, sys
from pathlib import Path
from filled import ungated
name, size, solver, options, out = sys.argv[1:6]
ungated(name, Path(out), json.loads(size), (1, 2, 8), solver, json.loads(options))
"""
PLENTY = "64GiB"
FORMS = ("1", "8", "parts")


@dataclass(frozen=True)
class Case:
    """A registered model at a size, with a solver."""

    name: str
    size: tuple[int, int]
    solver: str = "fixed_point"
    options: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.size[0]}x{self.size[1]} {self.solver}"


FITTED = (
    Case("cifar-tiny", (32, 32)),
    Case("cifar-large", (32, 32)),
    Case("imagenet-nano", (224, 224)),
    Case("imagenet-nano", (224, 224), "anderson", {"m": 3}),
    Case("camvid-micro", (192, 256)),
    Case("cityscapes-nano", (256, 512)),
    Case("imagenet-large", (224, 224)),
)
JUDGED = (
    Case("imagenet-small", (224, 224)),
    Case("cityscapes-small", (512, 1024)),
    Case("camvid-nano", (192, 256)),
    Case("camvid-nano", (384, 512), "broyden", {"m": 8}),
    Case("clothing-small", (64, 64), "anderson", {"m": 5}),
    Case("imagenet-nano", (320, 320)),
    Case("cityscapes-nano", (512, 1024)),
)


def main() -> None:
    """Make the bundles, measure, print a table; fails where a prediction does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="models by name")
    parser.add_argument("--fitted", action="store_true", help="those of the fit instead")
    parser.add_argument("--bundle", type=Path, help="measure this one instead")
    parser.add_argument("--precision", default="fp32", help="of what that bundle is measured with")
    parser.add_argument("--enforce", action="store_true", help="limit each process from outside")
    args = parser.parse_args()
    table = Table(title_justify="left")
    table.add_column("model, size, solver")
    for heading in ("form", "cache", "predicted MB", "measured MB", "apart", "kept"):
        table.add_column(heading, justify="right")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for label, bundle in bundles(args, Path(folder)):
            for form in FORMS:
                for cache in ("", str(Path(folder) / "cache")):
                    way = (bundle, form, cache, args.precision)
                    if cache:
                        run(*way, PLENTY)  # fills it
                    predicted, measured = run(*way, PLENTY)
                    apart = measured / predicted - 1
                    kept = enforced(way, predicted) if args.enforce else None
                    failed += not -0.25 <= apart <= 0 or kept is False
                    shown = {True: "yes", False: "NO", None: ""}[kept]
                    row = f"{predicted / 1e6:.1f}", f"{measured / 1e6:.1f}", f"{apart:+.1%}", shown
                    table.add_row(label, form, "yes" if cache else "no", *row)
    Console(width=110).print(table)
    if failed:
        sys.exit(f"{failed} predictions do not hold")


def bundles(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """What is measured, each with a name; bundles that are made lie in ``folder``."""
    if args.bundle is not None:
        yield f"{args.bundle.stem} {args.precision}", args.bundle
        return
    for case in FITTED if args.fitted else JUDGED:
        if not args.only or case.name in args.only:
            yield case.label, make(case, folder)


def make(case: Case, folder: Path) -> Path:
    """A bundle of drawn weights, made in a process of its own."""
    bundle = folder / f"{case.name}-{len(list(folder.iterdir()))}.mdeq"
    command = [sys.executable, "-c", MAKE, case.name, json.dumps(case.size), case.solver]
    command += [json.dumps(case.options), str(bundle)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)
    return bundle


def run(
    bundle: Path, form: str, cache: str, precision: str, limit: str, group: Path | None = None
) -> list[int]:
    """Predicted and measured bytes."""
    command = [sys.executable, "-c", CHILD, str(bundle), form, cache, limit, precision]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group} && exec "$@"', "sh", *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout))


def enforced(way: tuple[Path, str, str, str], predicted: int) -> bool:
    """Whether the prediction is enough when the kernel sees to it, and 10% less is refused."""
    limit = predicted + 2**20  # the base differs by some pages from run to run
    try:
        with memory_group(limit) as group:
            run(*way, str(limit), group)
    except subprocess.CalledProcessError:
        return False
    if way[1] == "parts":  # a graph may fit where parts do not, and the other way round
        try:
            run(*way, str(int(0.9 * predicted)))
        except subprocess.CalledProcessError as error:
            return "the least it needs" in str(error.stderr)
        return False
    return True


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """The file of a control group's processes, which have ``limit`` bytes together."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root = Path("/sys/fs/cgroup") if unified else Path("/sys/fs/cgroup/memory")
    group = root / f"edge-mdeq-{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.max" if unified else "memory.limit_in_bytes"
        (group / name).write_text(str(limit))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
