"""Which TensorRT there is. All that its versions want said differently is said here.

| version | profile | precision | network | compute capability |
|---|---|---|---|---|
| 8.6 | tensorrt-8 | builder flags | EXPLICIT_BATCH | of the GPU at hand |
| 10.x | tensorrt-10 | in the graph | STRONGLY_TYPED | of the GPU at hand |
| 11.x | tensorrt-11 | in the graph | STRONGLY_TYPED | of the GPU at hand |
| RTX 1.x | tensorrt-rtx | in the graph | always strongly typed | any, chosen ahead of time |
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mdeq.errors import ConfigError, DeviceError, MissingExtraError

__all__ = ["Flavour", "Release", "find_flavour", "find_release", "flavour_of", "installed"]

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
OLDEST = (8, 6)
HELP = {
    TENSORRT: "on a Jetson it comes with JetPack (sudo apt-get install python3-libnvinfer, and a "
    "virtual environment made with --system-site-packages), elsewhere pip install tensorrt",
    RTX: "pip install 'edge-mdeq[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class Release:
    """A version of TensorRT, whether or not it is imported.

    Attributes:
        numbers: such as (10, 3, 0).
        rtx: whether it is TensorRT for RTX.
    """

    numbers: tuple[int, ...]
    rtx: bool

    def __post_init__(self) -> None:
        known = (1,) if self.rtx else (8, 10, 11)
        old = not self.rtx and self.numbers < OLDEST
        if not self.numbers or self.numbers[0] not in known or old:
            raise DeviceError(
                f"TensorRT {self.version or 'of no version'} is none that edge-mdeq knows: it "
                "takes 8.6, 10.x and 11.x, and TensorRT for RTX 1.x"
            )

    @property
    def version(self) -> str:
        return ".".join(map(str, self.numbers))

    @property
    def name(self) -> str:
        """For people."""
        return f"TensorRT{' for RTX' if self.rtx else ''} {self.version}"

    @property
    def profile(self) -> str:
        """The target profile whose graphs it takes."""
        return "tensorrt-rtx" if self.rtx else f"tensorrt-{self.numbers[0]}"

    @property
    def weakly_typed(self) -> bool:
        """Whether precision is a matter of builder flags, not of the graph."""
        return not self.rtx and self.numbers[0] < 10


@dataclass(frozen=True)
class Flavour(Release):
    """An imported TensorRT.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
    """

    module: Any

    @property
    def has_monitor(self) -> bool:
        """Whether a build reports its progress; before, only its log tells."""
        return self.rtx or self.numbers[0] >= 10

    @property
    def streams_weights(self) -> bool:
        """Whether weights may stay with the host and come as they are needed."""
        return self.rtx or self.numbers[0] >= 10

    def network_flags(self) -> int:
        """The argument of ``create_network``."""
        if self.rtx:
            return 0
        flags = self.module.NetworkDefinitionCreationFlag
        return 1 << int(flags.EXPLICIT_BATCH if self.weakly_typed else flags.STRONGLY_TYPED)

    def capability(self, name: str) -> Any:
        """The compute capability ``name``, such as "SM86", as a build for RTX takes it.

        Raises:
            ConfigError: this version cannot build for it, or builds for the GPU at hand only.
        """
        if not self.rtx:
            raise ConfigError(
                f"{self.name} builds for the GPU at hand; a compute capability can be chosen for "
                "TensorRT for RTX only (--rtx)"
            )
        known = self.capabilities()
        if name not in known:
            raise ConfigError(
                f"{self.name} builds for no {name!r}, only for {', '.join(known)}; an Orin (8.7) "
                "or a Thor (11.0) builds its own engines with the TensorRT of its JetPack"
            )
        return getattr(self.module.ComputeCapability, name)

    def capabilities(self) -> tuple[str, ...]:
        """What ``capability`` takes."""
        members = vars(self.module.ComputeCapability)
        return tuple(
            sorted((n for n in members if re.fullmatch(r"SM\d+", n)), key=lambda n: int(n[2:]))
        )

    def compatibility(self, name: str) -> Any:
        """A hardware compatibility level, such as "ampere_plus", of ``IBuilderConfig``.

        Raises:
            ConfigError: this version has no such level.
        """
        levels = self.module.HardwareCompatibilityLevel
        known = [n.lower() for n in vars(levels) if n.isupper()]
        if name not in known:
            raise ConfigError(
                f"{self.name} has no hardware compatibility {name!r}, only {', '.join(known)}"
            )
        return getattr(levels, name.upper())


def installed(names: Sequence[str] = (TENSORRT, RTX)) -> tuple[str, ...]:
    """Which of these modules could be imported; none of them is."""
    return tuple(name for name in names if importlib.util.find_spec(name) is not None)


def find_release(rtx: bool | None = None) -> Release:
    """The version of the TensorRT that is installed, without importing it, which takes a while.

    Args:
        rtx: whether it is to be TensorRT for RTX; None: TensorRT where it is, else that for RTX.

    Raises:
        MissingExtraError: it is not installed.
        DeviceError: it is too old, or cannot be imported where that alone tells its version.
    """
    name = find_module(rtx)
    spec = importlib.util.find_spec(name)
    beside = Path(spec.origin).parent.parent if spec and spec.origin else Path()
    for folder in beside.glob(f"{name}*.dist-info"):
        if found := re.match(rf"{name}(_cu\d+)?(_bindings)?-([\d.]+)\.dist-info", folder.name):
            return Release(numbers_of(found[3]), name == RTX)
    return find_flavour(rtx)


def find_flavour(rtx: bool | None = None) -> Flavour:
    """The TensorRT that is installed, imported.

    Args:
        rtx: as in ``find_release``.

    Raises:
        MissingExtraError: it is not installed.
        DeviceError: it is, but cannot be imported, or is too old.
    """
    name = find_module(rtx)
    try:
        return flavour_of(importlib.import_module(name), name == RTX)
    except (ImportError, OSError, AttributeError) as error:
        raise DeviceError(
            f"{name} is installed but cannot be imported ({error}); {HELP[name]}"
        ) from error


def find_module(rtx: bool | None) -> str:
    wanted = (TENSORRT, RTX) if rtx is None else (RTX if rtx else TENSORRT,)
    for name in installed(wanted):
        return name
    what = "TensorRT for RTX" if rtx else "TensorRT"
    raise MissingExtraError(f"{what} is not installed: {HELP[wanted[0]]}")


def flavour_of(module: Any, rtx: bool = False) -> Flavour:
    """What an imported module is.

    Raises:
        DeviceError: older than 8.6, or of no known version.
    """
    return Flavour(numbers_of(str(module.__version__)), rtx, module)


def numbers_of(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
