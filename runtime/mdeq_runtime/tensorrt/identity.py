"""What an engine depends on. One that was built for anything else is never loaded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_mdeq.bundle import Profile
from edge_mdeq.errors import DeviceError
from mdeq_runtime.backends.nvidia import CudaDevice, find_device
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Release

__all__ = ["Identity", "differences", "identify", "precision_of", "system"]

L4T = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
DRIVER = re.compile(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)")
NAMES = {  # as messages call them, in the order in which they are told
    "device": "GPU",
    "processors": "multiprocessors",
    "capability": "compute capability",
    "l4t": "L4T",
    "driver": "driver",
    "cuda": "CUDA",
    "tensorrt": "TensorRT",
    "profile": "profile",
    "precision": "precision",
}


@dataclass(frozen=True)
class Identity:
    """A device, its software, and what of a bundle is built for it; "" where that does not matter.

    Attributes:
        device: the GPU's name.
        capability: its compute capability, such as "8.7"; several of them if an engine is for any.
        l4t: Jetson Linux, such as "36.4.3"; "" elsewhere.
        cuda: the newest that the driver supports.
        driver: its version.
        tensorrt: its version; "RTX 1.7.1" for that for RTX.
        profile: the target profile that engines are built from.
        precision: "fp32" or "fp16".
        compatibility: "none", "ampere_plus" or "same_compute_capability": on which GPUs it runs.
        version_compatible: whether later versions of the same major take it.
        processors: how many multiprocessors the GPU has, which its name alone does not tell.
    """

    device: str
    capability: str
    l4t: str
    cuda: str
    driver: str
    tensorrt: str
    profile: str
    precision: str
    compatibility: str = "none"
    version_compatible: bool = False
    processors: str = ""

    @property
    def fingerprint(self) -> str:
        """A folder's name: readable, and another one for any difference."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.device or f"sm-{self.capability}").strip("-")
        return f"{name}-{self.profile}-{self.precision}-{digest[:12]}"


def identify(
    release: Release, profile: Profile, settings: BuildSettings, root: Path = Path("/")
) -> Identity:
    """What engines of ``profile`` depend on, built here with ``settings``.

    TensorRT for RTX builds ahead of time: its engines fit any GPU of a compute capability.

    Args:
        release: of the TensorRT that builds, or runs, the engines.
        profile: the bundle's, for that release.
        settings: of the build; its defaults for what is to run here.
        root: of the file system that says what system this is.

    Raises:
        DeviceError: a GPU is needed, and there is none.
    """
    precision = precision_of(profile, settings)
    if release.rtx:
        names = settings.capabilities
        if not names:
            found = at_hand()
            names = (f"SM{found.capability[0]}{found.capability[1]}",)
        spelt = sorted((int(name[2:-1]), int(name[-1])) for name in names)
        return Identity(
            device="",
            capability=" ".join(f"{major}.{minor}" for major, minor in spelt),
            l4t="",
            cuda="",
            driver="",
            tensorrt=f"RTX {release.version}",
            profile=release.profile,
            precision=precision,
        )
    gpu = find_device()
    return Identity(
        device=gpu.name,
        capability=".".join(map(str, gpu.capability)),
        cuda=f"{gpu.driver // 1000}.{gpu.driver % 1000 // 10}",
        tensorrt=release.version,
        profile=release.profile,
        precision=precision,
        compatibility=settings.compatibility or "none",
        version_compatible=settings.version_compatible,
        processors=str(gpu.processors or ""),
        **system(root),
    )


def system(root: Path = Path("/")) -> dict[str, str]:
    """Jetson Linux, as ``l4t``, and the ``driver``'s version; "" where there is none."""
    return {
        "l4t": ".".join(said(root / "etc/nv_tegra_release", L4T)),
        "driver": "".join(said(root / "proc/driver/nvidia/version", DRIVER)),
    }


def at_hand() -> CudaDevice:
    """The GPU of this machine.

    Raises:
        DeviceError: there is none; RTX does without if it is told what to build for.
    """
    try:
        return find_device()
    except DeviceError as error:
        raise DeviceError(
            f"{error}. To build for another machine, say --compute-capability SM86"
        ) from error


def precision_of(profile: Profile, settings: BuildSettings) -> str:
    """In the graph, or, where precision is a builder's flag, as it is set."""
    in_graph = any(weights.precision == "fp16" for weights in profile.weights)
    return "fp16" if in_graph or settings.half else "fp32"


def said(path: Path, pattern: re.Pattern[str]) -> tuple[str, ...]:
    """What a file says where ``pattern`` asks; nothing if it is not there."""
    try:
        found = pattern.search(path.read_text(errors="replace"))
    except OSError:
        return ()
    return found.groups() if found else ()


def differences(built: Identity, here: Identity) -> list[str]:
    """Why an engine does not fit here, as "TensorRT 10.3.0, here 10.13.3"; nothing if it does.

    Where precision is the builder's choice (8.6), either fits.
    """
    differing = [name for name in NAMES if getattr(built, name) != getattr(here, name)]
    excused = {"precision"} if built.profile == "tensorrt-8" == here.profile else set()
    if here.capability in built.capability.split():
        excused |= {"capability"}
    if built.compatibility == "same_compute_capability":
        excused |= {"device", "processors"}
    if built.compatibility == "ampere_plus" and numbers(here.capability) >= (8, 0):
        excused |= {"device", "processors", "capability"}
    if built.version_compatible and fits_version(built.tensorrt, here.tensorrt):
        excused |= {"tensorrt"}
    return [
        f"{NAMES[name]} {getattr(built, name) or 'unknown'}, "
        f"here {getattr(here, name) or 'unknown'}"
        for name in differing
        if name not in excused
    ]


def fits_version(built: str, here: str) -> bool:
    """Whether a version-compatible engine runs: the same major, and not older."""
    old, new = numbers(built), numbers(here)
    return old[:1] == new[:1] and new >= old


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
