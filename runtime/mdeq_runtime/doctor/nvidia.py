"""NVIDIA's software: driver, CUDA, TensorRT and pycuda."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import distributions

from edge_mdeq.errors import DeviceError
from mdeq_runtime.doctor.machine import Finding, Machine, Status

__all__ = ["CHECKS"]

TENSORRTS = (11, 10, 8)  # majors, by which the library is named
SYSTEM_SITE = "python3 -m venv --system-site-packages .venv (then install edge-mdeq in it again)"
CUDA_PACKAGE = re.compile(r"nvidia-cuda-runtime(-cu\d+)?")


def driver(machine: Machine) -> Iterator[Finding]:
    try:
        gpu = machine.gpu()
    except DeviceError as error:
        if not machine.nvidia:
            yield Finding("NVIDIA", "driver", "note", "no NVIDIA GPU; models run on the CPU")
            return
        said = re.search(r"\(([^)]*)\)", str(error))
        yield Finding(
            "NVIDIA", "driver", "bad", said[1] if said else str(error), no_driver(machine)
        )
        return
    major, minor = gpu.driver // 1000, gpu.driver % 1000 // 10
    capability = ".".join(map(str, gpu.capability))
    found = f"{gpu.name}, compute capability {capability}, driver for CUDA {major}.{minor}"
    yield Finding("NVIDIA", "driver", "ok", found)


def no_driver(machine: Machine) -> str:
    """How to get at the driver where there is a GPU."""
    if machine.container:
        return f"start the container with {'--runtime nvidia' if machine.jetson else '--gpus all'}"
    closed = [path for path in machine.glob("dev/nvmap") if not machine.access(path)]
    if closed:
        return "sudo usermod -aG video $USER (then log in again)"
    if machine.jetson:
        return "sudo apt-get install nvidia-l4t-cuda"
    return "sudo ubuntu-drivers install (elsewhere the distribution's package of NVIDIA's driver)"


def cuda(machine: Machine) -> Iterator[Finding]:
    """The libraries of CUDA: of the system, or those that pip installed."""
    versions = []
    try:
        toolkit = json.loads(machine.read("usr/local/cuda/version.json"))["cuda"]["version"]
        versions.append(f"{toolkit} in /usr/local/cuda")
    except (ValueError, KeyError, TypeError):
        words = machine.read("usr/local/cuda/version.txt").split()
        versions += [f"{words[-1]} in /usr/local/cuda"] if words else []
    for package in distributions(path=list(machine.path)):
        if CUDA_PACKAGE.fullmatch((package.metadata["Name"] or "").lower()):
            versions.append(f"{package.version} by pip")
    if versions:
        yield Finding("NVIDIA", "CUDA", "ok", ", ".join(versions))
    elif not machine.nvidia:
        yield Finding("NVIDIA", "CUDA", "note", "not installed")
    else:
        mend = (
            "sudo apt-get install nvidia-jetpack"
            if machine.jetson
            else "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
        yield Finding("NVIDIA", "CUDA", "warn", "not found in /usr/local/cuda, nor by pip", mend)


def tensorrt(machine: Machine) -> Iterator[Finding]:
    """TensorRT's library, and its module for Python: each may be there without the other."""
    libraries = []
    for major in TENSORRTS:
        try:
            libraries.append(machine.tensorrt(major))
        except DeviceError:
            continue
    probed = machine.probes.get("tensorrt")
    if libraries:
        yield Finding("NVIDIA", "TensorRT", "ok", f"library {', '.join(libraries)}")
    elif machine.nvidia and not (probed and "version" in probed):
        mend = (
            "sudo apt-get install nvidia-jetpack"
            if machine.jetson
            else "pip install tensorrt (or NVIDIA's packages; only for engines)"
        )
        status: Status = "warn" if machine.jetson else "note"
        yield Finding("NVIDIA", "TensorRT", status, "no library libnvinfer was found", mend)
    elif not machine.nvidia:
        yield Finding("NVIDIA", "TensorRT", "note", "not installed")
    if probed is None:
        if not libraries:
            return
        if machine.in_system("tensorrt"):
            found = "the system's Python has it, this environment does not see it"
            yield Finding("NVIDIA", "TensorRT for Python", "warn", found, SYSTEM_SITE)
        else:
            mend = (
                "sudo apt-get install python3-libnvinfer"
                if machine.jetson
                else f"pip install tensorrt=={libraries[0]}"
            )
            yield Finding("NVIDIA", "TensorRT for Python", "warn", "not installed", mend)
    elif "error" in probed:
        mend = (
            f"pip uninstall tensorrt, then {SYSTEM_SITE}"
            if machine.jetson
            else ("pip install --force-reinstall tensorrt")
        )
        yield Finding("NVIDIA", "TensorRT for Python", "bad", probed["error"], mend)
    else:
        yield Finding("NVIDIA", "TensorRT for Python", "ok", probed["version"])


def pycuda(machine: Machine) -> Iterator[Finding]:
    """What the native TensorRT backend uses; ONNX Runtime does without it."""
    probed = machine.probes.get("pycuda")
    if probed is not None and "error" not in probed:
        yield Finding("NVIDIA", "pycuda", "ok", probed["version"])
    elif probed is not None:
        mend = (
            ""
            if not machine.nvidia
            else (
                "pip install --force-reinstall --no-binary pycuda pycuda (after the driver works)"
            )
        )
        status: Status = "bad" if machine.nvidia else "note"
        yield Finding("NVIDIA", "pycuda", status, probed["error"], mend)
    elif not machine.nvidia:
        yield Finding("NVIDIA", "pycuda", "note", "not installed")
    else:
        mend = "PATH=/usr/local/cuda/bin:$PATH pip install 'edge-mdeq[tensorrt]'"
        yield Finding("NVIDIA", "pycuda", "note", "not installed; engines need it", mend)


CHECKS = (driver, cuda, tensorrt, pycuda)
