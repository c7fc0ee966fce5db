"""Python, the packages of this project's extras, ONNX Runtime, and which devices it can use."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires

from edge_mdeq.version import __version__
from mdeq_runtime.doctor.machine import Finding, Machine

__all__ = ["CHECKS", "devices"]

OLDEST, NEWEST = (3, 10), (3, 12)
PURPOSES = {  # of extras; those that are not named here are for developers
    "onnxruntime": "running bundles on the CPU",
    "onnxruntime-gpu": "running bundles on a GPU by ONNX Runtime",
    "tensorrt": "running TensorRT engines",
    "camera": "cameras, videos and windows",
    "web": "a live page, metrics over HTTP",
    "batch": "bundles over folders of videos",
    "export": "exporting, on a workstation",
    "unroll": "further rungs without torch",
    "train": "training, on a workstation",
}
FROM_ELSEWHERE = {  # modules that also come by other names, or with the system
    "onnxruntime": "onnxruntime",
    "opencv-python": "cv2",
    "pycuda": "pycuda",
}
BUILDS = ("onnxruntime", "onnxruntime-gpu")  # which overwrite each other


def python(machine: Machine) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        mend = "use one of " + ", ".join(f"3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))
        yield Finding("software", "Python", "warn", f"{version} is not supported", mend)
    else:
        alone = ", without the system's packages" if machine.own_environment else ""
        yield Finding("software", "Python", "ok", f"{version}{alone}")
    yield Finding("software", "edge-mdeq", "ok", __version__)


def extras(machine: Machine) -> Iterator[Finding]:
    """Each extra that users know, and what of it is missing."""
    try:
        wanted = requires("edge-mdeq") or []
    except PackageNotFoundError:
        found = "edge-mdeq is not installed, only its files are there"
        yield Finding("software", "extras", "warn", found, "pip install edge-mdeq")
        return
    here = installed(machine)
    for extra, purpose in PURPOSES.items():
        names = [
            normal(requirement)
            for requirement in wanted
            if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
        ]
        if not names:  # of a version that does not have it
            continue
        lacks = [
            name
            for name in names
            if name not in here
            and not (name in FROM_ELSEWHERE and machine.has_module(FROM_ELSEWHERE[name]))
        ]
        if lacks:
            some = "" if len(lacks) == len(names) else f" lacks {', '.join(lacks)}"
            found = f"{'partly there,' if some else 'not installed'}{some} ({purpose})"
            mend = f"pip install 'edge-mdeq[{extra}]'"
            yield Finding("software", f"extra {extra}", "note", found, mend)
        else:
            yield Finding("software", f"extra {extra}", "ok", purpose)


def onnxruntime(machine: Machine) -> Iterator[Finding]:
    probed = machine.probes.get("onnxruntime")
    if probed is None:
        found = "not installed; nothing runs a bundle"
        yield Finding("software", "ONNX Runtime", "bad", found, get_onnxruntime(machine))
        return
    twice = [name for name in BUILDS if name in installed(machine)]
    if len(twice) > 1:
        mend = f"pip uninstall {' '.join(twice)}; {get_onnxruntime(machine)}"
        found = f"{' and '.join(twice)} overwrite each other"
        yield Finding("software", "ONNX Runtime", "warn", found, mend)
    if "error" in probed:
        mend = f"pip uninstall {' '.join(twice or BUILDS[:1])}; {get_onnxruntime(machine)}"
        yield Finding("software", "ONNX Runtime", "bad", probed["error"], mend)
        return
    shown = ", ".join(name.removesuffix("ExecutionProvider") for name in probed["providers"])
    if machine.nvidia and "CUDAExecutionProvider" not in probed["providers"]:
        mend = f"pip uninstall onnxruntime; {get_onnxruntime(machine)}"
        found = f"{probed['version']} ({shown}): leaves the GPU unused"
        yield Finding("software", "ONNX Runtime", "warn", found, mend)
    else:
        yield Finding("software", "ONNX Runtime", "ok", f"{probed['version']} ({shown})")


def get_onnxruntime(machine: Machine) -> str:
    if machine.jetson:
        return "pip install the onnxruntime-gpu made for this JetPack (or 'edge-mdeq[onnxruntime]')"
    if machine.nvidia:
        return "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    return "pip install 'edge-mdeq[onnxruntime]'"


CHECKS = (python, onnxruntime, extras)


def devices(machine: Machine) -> dict[str, str | None]:
    """Per device that a bundle can run on, why it cannot here; None if it can."""
    probed = machine.probes.get("onnxruntime")
    if probed is None or "error" in probed:
        why = "ONNX Runtime is not installed" if probed is None else probed["error"]
        return dict.fromkeys(("cpu", "cuda", "tensorrt"), why)
    found: dict[str, str | None] = dict(probed["devices"])
    if not machine.nvidia:  # then this is the reason, whatever else is missing
        found |= {name: "no NVIDIA GPU" for name, why in found.items() if name != "cpu" and why}
    return found


def installed(machine: Machine) -> set[str]:
    """The names of all packages that Python would find."""
    names = (package.metadata["Name"] for package in distributions(path=list(machine.path)))
    return {normal(name) for name in names if name}


def normal(requirement: str) -> str:
    """The package's name in a requirement, as package indexes spell it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""
