"""The machine that is examined, what is found on it, and how its files are read.

Everything is looked up below one root folder, so that a folder can stand for a machine.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from mdeq_runtime.backends.nvidia import CudaDevice, find_device, tensorrt_version
from mdeq_runtime.doctor.probes import probe_all

__all__ = ["Check", "Finding", "Machine", "Status", "mib"]

Status = Literal["ok", "note", "warn", "bad"]
NVIDIA_VENDOR = "0x10de"  # on the PCI bus


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: what it belongs to, such as "cameras".
        name: what was looked at.
        status: "ok"; "note", absent and not needed for everything; "warn", it works but worse or
            less; "bad", something does not work.
        found: what is there, in words.
        mend: the command, or the step, that mends it; "" where there is nothing to mend.
    """

    section: str
    name: str
    status: Status
    found: str
    mend: str = ""


@dataclass
class Machine:
    """Where to look.

    Attributes:
        root: the folder that holds proc, sys, etc and dev.
        environ: the environment of the process that is to run models.
        path: where its Python looks for modules.
        architecture: of its processor, such as "aarch64".
        gpu: gives the first GPU, or raises DeviceError.
        tensorrt: gives the version of a TensorRT library by its major, or raises DeviceError.
        access: whether a device file may be read and written.
        bundle: a bundle to try.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    path: Sequence[str] = field(default_factory=lambda: list(sys.path))
    architecture: str = field(default_factory=platform.machine)
    gpu: Callable[[], CudaDevice] = find_device
    tensorrt: Callable[[int], str] = tensorrt_version
    access: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)
    bundle: Path | None = None

    def read(self, name: str) -> str:
        """What a file says; "" if it cannot be read."""
        try:
            return (self.root / name).read_text(errors="replace").strip("\0 \t\r\n")
        except OSError:
            return ""

    def fields(self, name: str) -> dict[str, str]:
        """The lines ``key: value`` of a file, as those of /proc/meminfo."""
        lines = (line.partition(":") for line in self.read(name).splitlines())
        return {key.strip(): value.strip() for key, _, value in lines}

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def shown(self, path: Path) -> str:
        """A path below the root as the machine itself would call it."""
        return f"/{path.relative_to(self.root)}"

    def has_module(self, name: str) -> bool:
        """Whether Python would find a module; it is not imported."""
        return PathFinder.find_spec(name, list(self.path)) is not None

    @cached_property
    def model(self) -> str:
        """The board's or computer's name; "" if it has none."""
        return self.read("proc/device-tree/model") or self.read("sys/class/dmi/id/product_name")

    @cached_property
    def jetson(self) -> bool:
        """A Jetson, or another board with its chip."""
        names = self.model + self.read("proc/device-tree/compatible")
        known = any(word in names.lower() for word in ("jetson", "nvidia,tegra"))
        return known or (self.root / "etc/nv_tegra_release").is_file()

    @cached_property
    def container(self) -> bool:
        """Docker, Podman, or another container that says so."""
        marks = (self.root / ".dockerenv", self.root / "run/.containerenv")
        words = ("docker", "kubepods", "containerd", "libpod", "lxc")
        groups = self.read("proc/1/cgroup")
        return any(mark.exists() for mark in marks) or any(word in groups for word in words)

    @cached_property
    def nvidia(self) -> bool:
        """Whether there is NVIDIA hardware, with or without a driver."""
        if self.jetson or self.glob("dev/nvidia[0-9]*"):
            return True
        vendors = (self.root / "sys/bus/pci/devices").glob("*/vendor")
        return any(
            self.read(str(path.relative_to(self.root))) == NVIDIA_VENDOR
            and self.read(str(path.relative_to(self.root).with_name("class"))).startswith("0x03")
            for path in vendors
        )

    @cached_property
    def probes(self) -> dict[str, dict[str, Any]]:
        """What the libraries that are installed say of themselves; see ``probes``."""
        names = [name for name in ("cv2", "onnxruntime", "pycuda") if self.has_module(name)]
        if self.has_module("tensorrt"):
            names.append("tensorrt")
        if self.bundle is not None and "onnxruntime" in names:
            names.append("bundle")
        return probe_all(names, self.path, self.environ, self.bundle)

    @property
    def own_environment(self) -> bool:
        """Whether Python runs in a virtual environment that does not see the system's packages."""
        try:
            settings = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower()
        except OSError:
            return False
        lines = (line.partition("=") for line in settings.splitlines())
        values = {key.strip(): value.strip() for key, _, value in lines}
        return values.get("include-system-site-packages") != "true"

    def in_system(self, module: str) -> bool:
        """Whether the system's own Python has a module that came with its packages."""
        return bool(self.glob(f"usr/lib/python3*/dist-packages/{module}*"))


Check = Callable[[Machine], Iterator[Finding]]


def mib(count: float) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
