"""Forks a child per order that writes an artefact under strace, and may be killed in between.

A process of its own, without threads, so that a fork is safe and costs no imports: an order takes
milliseconds even where what writes needs torch. Orders come as JSON lines on stdin, answers go to
stdout: ``python server.py ARTEFACT`` is started by ``tracing.Tracer``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from artefacts import ARTEFACTS, Artefact
from tracing import TRACED, Point

PR_SET_PTRACER, ANYBODY = 0x59616D61, -1


def fork(artefact: Artefact, folder: Path, version: str) -> int:
    """A stopped child that writes once it goes on."""
    child = os.fork()
    if child:
        os.waitpid(child, os.WUNTRACED)
        return child
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)  # strace is no ancestor
        os.dup2(2, 1)
        os.kill(os.getpid(), signal.SIGSTOP)
        artefact.write(folder, version)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def trace(child: int, log: str, before: Point | None) -> int:
    """Let a child go on under strace; its status as ``waitpid`` has it."""
    command = ["strace", "-f", "-y", "-p", str(child), "-o", log, "-s", "8", "-e", "signal=none"]
    command += ["-e", f"trace={TRACED}"]
    if before is not None:
        name, number = before
        command += ["-e", f"inject={name}:signal=KILL:when={number}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"strace cannot attach: {said.strip()}")
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        strace.stderr.read()
    return status


def main() -> None:
    artefact = ARTEFACTS[sys.argv[1]]
    artefact.load()
    with tempfile.TemporaryDirectory() as folder:  # libraries import parts of theirs late
        artefact.write(Path(folder), "old")
    answer: dict[str, Any]
    for line in sys.stdin:
        order = json.loads(line)
        child = fork(artefact, Path(order["folder"]), order["version"])
        try:
            if order["log"] is None:
                os.kill(child, signal.SIGCONT)
                answer = {"status": os.waitpid(child, 0)[1]}
            else:
                answer = {"status": trace(child, order["log"], order["before"])}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
