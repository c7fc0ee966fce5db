"""What a process does to files, call by call, and a kill before any one of these calls.

strace sees the system calls that really happen, those of compiled libraries too, and its fault
injection kills the process as it enters one of them: the call does not happen, all before it have.
The product knows nothing of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["CHANGING", "TRACED", "Call", "Point", "Tracer", "read_log", "unavailable"]

NAMES = ("mkdir", "rename", "unlink", "rmdir", "link", "symlink")
DATA = ("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "ftruncate")
OTHERS = ("renameat2", "pwritev2", "truncate", "fallocate", "chmod", "fchmod", "fchmodat")
SYNCING = ("fsync", "fdatasync", "sync", "syncfs")
# All that changes what is on a disk, but opening, whose effect shows before the next call.
CHANGING = (*NAMES, *(f"{name}at" for name in NAMES), *DATA, *OTHERS, *SYNCING)
TRACED = ",".join(f"?{name}" for name in [*CHANGING, "open", "openat", "openat2", "creat"])

WHOLE = re.compile(r"(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)")
UNFINISHED = re.compile(r"(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"(\d+)\s+<\.\.\. (\w+) resumed>(.*)")


Point = tuple[str, int]  # a call by its name and its number


@dataclass(frozen=True)
class Call:
    """A system call that came back.

    Attributes:
        name, text: which, and its arguments as strace prints them, with the paths of descriptors.
        result: what it gave; negative if it failed.
        opened: the path of a descriptor that it made.
        number: its place among the calls of that name in its thread, from 1: so strace counts.
    """

    name: str
    text: str
    result: int
    opened: str
    number: int


def read_log(path: Path) -> list[Call]:
    """The calls in a log of ``strace -f -y``, in the order in which they came back."""
    calls: list[Call] = []
    halves: dict[str, str] = {}
    numbers: Counter[tuple[str, str]] = Counter()
    for line in path.read_text(errors="replace").splitlines():
        if found := UNFINISHED.fullmatch(line):
            halves[found[1]] = found[3]
            continue
        if found := RESUMED.fullmatch(line):
            line = f"{found[1]} {found[2]}({halves.pop(found[1], '')}{found[3]}"
        found = WHOLE.fullmatch(line)
        if not found or found[4] == "?":
            continue
        thread, name, text, result, rest = found.groups()
        numbers[thread, name] += 1
        opened = rest.removeprefix("<").removesuffix(">") if rest.startswith("<") else ""
        calls.append(Call(name, text, int(result), opened, numbers[thread, name]))
    return calls


def unavailable() -> str:
    """Why nothing can be traced here; "" if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-qq", "-o", os.devnull, "-e", "inject=?fsync:signal=KILL:when=9", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


class Tracer:
    """Writes versions of an artefact in children; see ``server.py``.

    Args:
        artefact: its name among ``artefacts.ARTEFACTS``.
        log: where the last child's calls are written.
    """

    def __init__(self, artefact: str, log: Path) -> None:
        self.log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",  # its threads would not survive a fork
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("server.py")), artefact],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.process.communicate(timeout=10)  # no more orders
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def write(self, folder: Path, version: str) -> list[Call]:
        """Write, to the end; the calls."""
        status = self.order(folder, version, self.log, None)
        assert status == 0, f"writing ended with status {status}"
        return read_log(self.log)

    def write_untraced(self, folder: Path, version: str) -> None:
        """Write, to the end."""
        status = self.order(folder, version, None, None)
        assert status == 0, f"writing ended with status {status}"

    def kill(self, folder: Path, version: str, before: Point) -> bool:
        """Write, and be killed as a call is entered; False if it ended before that."""
        status = self.order(folder, version, self.log, before)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        assert status == 0, f"writing ended with status {status}"
        return False

    def order(self, folder: Path, version: str, log: Path | None, before: Point | None) -> int:
        order = {
            "folder": str(folder),
            "version": version,
            "log": None if log is None else str(log),
            "before": before,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the server died with status {self.process.wait()}"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return int(answer["status"])
