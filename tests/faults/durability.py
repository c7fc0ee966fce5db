"""What a power cut leaves: a small model of what POSIX promises, played over a log of calls.

Data that was not fsynced is lost; a name that was made, or moved, is lost until its folder is
fsynced. Renaming is atomic. File systems usually keep more than that; none has to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tracing import Call

__all__ = ["Disk", "replay"]

DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
NAME = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
DATA = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate")
COPIED = ("sendfile", "copy_file_range")  # into the first, or the second descriptor


@dataclass
class Disk:
    """The names below a folder, and which of them a power cut would take.

    Attributes:
        root: the folder; what lies elsewhere is not looked at.
        dirty: files with data that was not fsynced.
        loose: names whose folder was not fsynced since they came there.
        faults: what was found, in words.
    """

    root: Path
    dirty: set[str] = field(default_factory=set)
    loose: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def holds(self, path: str) -> bool:
        return path.startswith(f"{self.root}/")

    def below(self, names: set[str], path: str) -> set[str]:
        """Those of ``names`` that are ``path``, or lie in it."""
        return {name for name in names if name == path or name.startswith(f"{path}/")}

    def made(self, path: str) -> None:
        if self.holds(path):
            self.loose.add(path)

    def changed(self, path: str) -> None:
        if self.holds(path):
            self.dirty.add(path)

    def synced(self, path: str) -> None:
        self.dirty.discard(path)
        self.loose -= {name for name in self.loose if os.path.dirname(name) == path}

    def gone(self, path: str) -> None:
        """Removed: whether that survives does not matter, a leftover is swept later."""
        for names in (self.dirty, self.loose):
            names -= self.below(names, path)

    def renamed(self, old: str, new: str, exchanged: bool) -> None:
        """What takes a name has to be on the disk by then, with all that is in it."""
        if not self.holds(new):
            return
        temporary = os.path.basename(new).startswith(".")  # which nobody looks at
        if (lost := self.below(self.dirty, old)) and not temporary:
            self.faults.append(f"{old} became {new} before the data of {short(lost)} was fsynced")
        if (lost := self.below(self.loose, old) - {old}) and not temporary:
            self.faults.append(f"{old} became {new} before the names {short(lost)} were fsynced")
        other = {kind: self.below(names, new) for kind, names in self.kinds() if exchanged}
        self.gone(new)
        for kind, names in self.kinds():
            moved = self.below(names, old)
            names -= moved
            names |= {new + name.removeprefix(old) for name in moved}
            names |= {old + name.removeprefix(new) for name in other.get(kind, ())}
        self.made(new)

    def kinds(self) -> tuple[tuple[str, set[str]], ...]:
        return (("dirty", self.dirty), ("loose", self.loose))

    def lost(self, path: Path) -> list[str]:
        """What a power cut at the end would take of ``path``, or of the way to it."""
        way = {str(path), *map(str, path.parents)}
        loose = {name for name in self.loose if name in way} | self.below(self.loose, str(path))
        return sorted([f"the name {name}" for name in loose]) + sorted(
            f"the data of {name}" for name in self.below(self.dirty, str(path))
        )


def replay(calls: Iterable[Call], root: Path) -> Disk:
    """Play a log on a disk whose content was all safe before."""
    disk = Disk(root)
    for call in calls:
        if call.result >= 0:
            step(disk, call)
    return disk


def step(disk: Disk, call: Call) -> None:
    descriptors, names = DESCRIPTOR.findall(call.text), named(call.text)
    if call.name.startswith(("open", "creat")):
        if "O_CREAT" in call.text and call.opened and call.opened not in disk.loose:
            # whether it was there before is not said; an fsync of the folder too much does no harm
            disk.made(call.opened)
        if "O_TRUNC" in call.text and call.opened:
            disk.changed(call.opened)
    elif call.name in DATA and descriptors:
        disk.changed(descriptors[0])
    elif call.name in COPIED:
        disk.changed(descriptors[0 if call.name == "sendfile" else 1])
    elif call.name in ("fsync", "fdatasync"):
        disk.synced(descriptors[0])
    elif call.name in ("sync", "syncfs"):
        disk.dirty.clear()
        disk.loose.clear()
    elif call.name.startswith("mkdir"):
        disk.made(names[0])
    elif call.name.startswith("rename"):
        disk.renamed(names[0], names[1], "RENAME_EXCHANGE" in call.text)
    elif call.name in ("unlink", "unlinkat", "rmdir"):
        disk.gone(names[0])
    elif call.name.startswith(("link", "symlink")):
        disk.made(names[-1])


def named(text: str) -> list[str]:
    """The absolute paths that are given by name, in order."""
    found = []
    for folder, name in NAME.findall(text):
        found.append(os.path.normpath(os.path.join(folder or os.getcwd(), name)))
    return found


def short(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
