"""Kills each writer before every one of its file operations, and prints what was left.

    python tests/faults/sweep.py [NAME...]          # all artefacts, all operations

Ends with status 1 if anything was broken.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from artefacts import ARTEFACTS
from durability import replay
from tracing import CHANGING, Point, Tracer, unavailable

__all__ = ["Sweep"]


class Sweep:
    """Kills of one writer.

    Args:
        name: of the artefact.
        tracer: writes it.
        folder: to work in.

    Attributes:
        kills: how many there were.
        broken: what they left that was neither the old nor the new, in words.
        lost: what a power cut would have taken from a writer that was done, by what was there.
    """

    def __init__(self, name: str, tracer: Tracer, folder: Path) -> None:
        self.artefact, self.tracer, self.folder = ARTEFACTS[name], tracer, folder
        self.name, self.kills = name, 0
        self.broken: list[str] = []
        self.tidy: dict[str | None, set[str]] = {}
        self.lost: dict[str | None, list[str]] = {}

    def prepared(self, start: str | None) -> Path:
        """An own copy of a folder in which ``start`` is, or nothing."""
        master = self.folder / f"{self.name}-{start}"
        if not master.exists():
            master.mkdir()
            if start is not None:
                self.tracer.write_untraced(master, start)
        work = self.folder / f"{self.name}-work"
        shutil.rmtree(work, ignore_errors=True)
        return Path(shutil.copytree(master, work, symlinks=True))

    def points(self, start: str | None) -> list[Point]:
        """The calls that write anywhere near the artefact."""
        work = self.prepared(start)
        calls = self.tracer.write(work, "new")
        assert self.artefact.read(work) == "new"
        self.tidy[start] = names(work)
        disk = replay(calls, work)
        self.lost[start] = disk.faults + disk.lost(work / self.artefact.place)
        return [(c.name, c.number) for c in calls if c.name in CHANGING and str(work) in c.text]

    def kill(self, start: str | None, point: Point) -> None:
        """One kill, what it leaves, and the next run of the same writer."""
        work = self.prepared(start)
        if not self.tracer.kill(work, "new", point):
            return
        self.kills += 1
        where = f"{self.name} over {start}, killed before {point[0]} {point[1]}"
        try:
            found = self.artefact.read(work)
        except Exception as error:
            self.broken.append(f"{where}: {type(error).__name__}: {error}")
            found = start
        if found not in (start, "new"):
            self.broken.append(f"{where}: {found} is there")
        self.tracer.write_untraced(work, "new")
        if self.artefact.read(work) != "new":
            self.broken.append(f"{where}: the next run did not write the new one")
        left = names(work) - self.tidy[start]
        if left := {name for name in left if Path(name).name.startswith(".")}:
            self.broken.append(f"{where}: the next run left {sorted(left)}")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ARTEFACTS))
    parser.add_argument("--most", type=int, help="kills of each writer and start, drawn; else all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if why := unavailable():
        print(f"error: {why}", file=sys.stderr)
        return 1
    state = tempfile.TemporaryDirectory()  # a device of its own
    os.environ["XDG_STATE_HOME"] = state.name
    kills, broken = 0, []
    print(f"{'artefact':<20} {'kills':>6} {'broken':>7}")
    for name in arguments.names or sorted(ARTEFACTS):
        with tempfile.TemporaryDirectory() as folder:
            with Tracer(name, Path(folder) / "calls.log") as tracer:
                sweep = Sweep(name, tracer, Path(folder))
                for start in (None, "old"):
                    points = sweep.points(start)
                    if arguments.most is not None and arguments.most < len(points):
                        points = random.Random(arguments.seed).sample(points, arguments.most)
                    for point in points:
                        sweep.kill(start, point)
            print(f"{name:<20} {sweep.kills:>6} {len(sweep.broken):>7}", flush=True)
            kills, broken = kills + sweep.kills, broken + sweep.broken
    print(f"{'all':<20} {kills:>6} {len(broken):>7}")
    print("\n".join(broken))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
