"""What a build says while it lasts: from its progress monitor, or, where there is none, its log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["LogReader", "Phases", "Progress", "logger", "monitor"]

LAYERS = re.compile(r"^After .*: (\d+) layers")
TIMING = re.compile(r"^-+ Timing Runner: (.+) \(\w+\)|^=+ Computing costs for (.+?) *=*$")
REFORMAT = "reformat"  # copies between layouts, which are timed too and are no layers
COMPLAINTS = ("INTERNAL_ERROR", "ERROR", "WARNING")


@dataclass(frozen=True)
class Progress:
    """How far a build is: what it does, and the share that is done, from 0 to 1."""

    phase: str
    done: float


@dataclass
class Phase:
    steps: int
    parent: str | None
    step: int = 0


@dataclass
class Phases:
    """The share that is done of phases within phases.

    Each phase says how many steps it has; a phase that begins within a step of another is a part of
    that step. Some phases run side by side; the largest share so far is what is reported, so that
    it never goes back.
    """

    open: dict[str, Phase] = field(default_factory=dict)
    done: float = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> Progress:
        self.open[name] = Phase(max(1, steps), parent)
        return self.report(name)

    def step(self, name: str, step: int) -> Progress:
        if name in self.open:
            self.open[name].step = step
        return self.report(name)

    def finish(self, name: str) -> Progress:
        if name in self.open:
            self.open[name].step = self.open[name].steps
        progress = self.report(name)
        self.open.pop(name, None)
        return progress

    def report(self, name: str) -> Progress:
        share, at, seen = 0.0, self.open.get(name), 0
        while at is not None and seen <= len(self.open):
            share = min(1.0, (at.step + share) / at.steps)
            at, seen = self.open.get(at.parent) if at.parent else None, seen + 1
        self.done = max(self.done, share)
        return Progress(name, self.done)


@dataclass
class LogReader:
    """The same from the verbose log of a version without a monitor.

    It says how many layers are left after each fusion, and then the name of each that it times; a
    name comes again with every tactic and layout.
    """

    layers: int = 0
    timed: set[str] = field(default_factory=set)

    def hear(self, text: str) -> Progress | None:
        """How far a build is after this line; None if the line does not tell."""
        if found := LAYERS.match(text):
            self.layers = int(found[1])
            return Progress("fusing layers", 0.0)
        found = TIMING.match(text)
        name = (found[1] or found[2]) if found else None
        if name is None or REFORMAT in name.lower():
            return None
        self.timed.add(name)
        return Progress("timing layers", min(1.0, len(self.timed) / max(1, self.layers)))


def logger(
    flavour: Flavour,
    complain: Callable[[str, str], None],
    report: Callable[[Progress], bool] | None = None,
) -> Any:
    """TensorRT's ``ILogger``.

    Args:
        flavour: whose.
        complain: hears of warnings and errors: their severity and text.
        report: hears of a build's progress where only the log tells it.
    """
    trt = flavour.module
    reader = None if flavour.has_monitor or report is None else LogReader()
    loud = tuple(getattr(trt.ILogger.Severity, name) for name in COMPLAINTS)

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        """Exceptions must not leave ``log``: it is called from C++."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in loud:
                complain(COMPLAINTS[loud.index(severity)].lower(), msg)
            elif reader is not None and report is not None and (heard := reader.hear(msg)):
                report(heard)

    return Listener()


def monitor(flavour: Flavour, report: Callable[[Progress], bool]) -> Any:
    """TensorRT's ``IProgressMonitor``; ``report`` hears, and ends the build by False."""
    trt, phases = flavour.module, Phases()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report(phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            return report(phases.step(phase_name, step + 1))

        def phase_finish(self, phase_name: str) -> None:
            report(phases.finish(phase_name))

    return Monitor()
