"""What a device has and lacks, and how to mend it. Works where nothing of it exists.

Each check is a function that yields findings; one that raises becomes a finding itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import BundleError
from mdeq_runtime.doctor import board, media, nvidia, software
from mdeq_runtime.doctor.machine import Check, Finding, Machine, Status, mib

__all__ = ["Finding", "Machine", "Report", "Status", "examine", "run_checks"]

CHECKS: tuple[tuple[str, Sequence[Check]], ...] = (
    ("device", board.CHECKS),
    ("NVIDIA", nvidia.CHECKS),
    ("software", software.CHECKS),
    ("media", media.CHECKS),
)


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        findings: in the order in which they are to be read.
        devices: per device of ``mdeq_runtime.backends.choose``, why nothing runs on it; None if
            bundles do.
        profiles: the same per profile of the bundle, if there is one.
    """

    findings: tuple[Finding, ...]
    devices: dict[str, str | None]
    profiles: dict[str, str | None] | None = None

    @property
    def runs(self) -> bool:
        """Whether the bundle (without one: some bundle) can be run here."""
        verdicts = self.devices if self.profiles is None else self.profiles
        return any(reason is None for reason in verdicts.values())


def examine(machine: Machine | None = None) -> Report:
    """Look at everything. Never raises: what cannot be examined is a finding."""
    machine = machine or Machine()
    findings = [
        found for section, checks in CHECKS for found in run_checks(machine, section, checks)
    ]
    devices = software.devices(machine)
    findings += [
        Finding("runs on", name, "ok" if why is None else "note", why or "yes")
        for name, why in devices.items()
    ]
    profiles: dict[str, str | None] | None = None
    if machine.bundle is not None:
        profiles = {}
        findings += run_checks(machine, "bundle", [functools.partial(try_on, profiles=profiles)])
    return Report(tuple(findings), devices, profiles)


def run_checks(machine: Machine, section: str, checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, each apart from the others."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check(machine))  # what it yields before it raises is kept
        except Exception as error:
            what = getattr(check, "__name__", section)
            found = f"could not be examined ({type(error).__name__}: {error})"
            findings.append(Finding(section, what, "warn", found, "please report this"))
    return findings


def try_on(machine: Machine, profiles: dict[str, str | None]) -> Iterator[Finding]:
    """Which profiles of the bundle would run here; they are put into ``profiles``."""
    assert machine.bundle is not None
    try:
        bundle = open_bundle(machine.bundle, verify=True)
    except BundleError as error:
        yield Finding("bundle", machine.bundle.name, "bad", str(error))
        return
    probed = machine.probes.get("bundle", {"error": "ONNX Runtime is not installed"})
    free, _ = board.available_memory(machine)
    for name in bundle.manifest.profiles:
        entry = probed.get("profiles", {}).get(name, {"error": probed.get("error", "no answer")})
        why, need = entry["error"], entry.get("bytes")
        profiles[name] = why
        if why is not None:
            yield Finding("bundle", name, "bad" if name == "ort-cpu" else "note", why)
        elif need is not None and free is not None and need > free:
            profiles[name] = f"needs {mib(need)} of memory, {mib(free)} are free"
            mend = "export it with a smaller --imgsz, or end other programs"
            yield Finding("bundle", name, "bad", profiles[name] or "", mend)
        else:
            yield Finding("bundle", name, "ok", f"runs, in {mib(need)}" if need else "runs")
