"""An arm64 Debian beside this machine's own system: debootstrap fills it, QEMU executes it.

What takes minutes is made once and kept in ``$EDGE_MDEQ_ARM64``, else ``~/.cache/edge-mdeq/arm64``:
the root by its release and packages, an environment in it by the requirements of its wheels.
This machine's pip downloads and unpacks the wheels for the other one: no package is compiled, and
emulated, only what looks into them would take minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Arm64Root", "missing"]

RELEASE, PYTHON = "bookworm", "3.11"
PACKAGES = ("ca-certificates", "libgl1", "libglib2.0-0", "python3-pip", "python3-venv")
ENTER = """
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")


def missing() -> str:
    """Why no such root can be made here; empty if one can."""
    if os.uname().machine in ("aarch64", "arm64"):
        return "this is an arm64 machine: the whole suite is the test"
    if os.geteuid() != 0:
        return "needs root, for debootstrap and chroot"
    if shutil.which("debootstrap") is None:
        return "needs debootstrap: apt-get install debootstrap"
    if not BINFMT.exists() or "enabled" not in BINFMT.read_text():
        return (
            "this kernel does not hand arm64 programs to QEMU: apt-get install qemu-user-static "
            "binfmt-support, and mount binfmt_misc"
        )
    return ""


class Arm64Root:
    """The root, and environments in it.

    Attributes:
        path: of the root, on this machine.
    """

    def __init__(self) -> None:
        cache = os.environ.get("EDGE_MDEQ_ARM64") or Path.home() / ".cache" / "edge-mdeq" / "arm64"
        self.path = Path(cache) / f"{RELEASE}-{digest(PACKAGES)}"
        if not self.path.exists():
            self.make()
        # With the kernel's own /sys, which describes another processor, ONNX Runtime 1.32 crashes;
        # without these two lists 1.23 cannot be imported.
        for name in ("possible", "present"):
            processors = self.path / "sys" / "devices" / "system" / "cpu" / name
            processors.parent.mkdir(parents=True, exist_ok=True)
            processors.write_text("0\n")

    def make(self) -> None:
        """Fill the root; what a killed run leaves is not taken for one."""
        half = self.path.with_suffix(".tmp")
        shutil.rmtree(half, ignore_errors=True)
        half.parent.mkdir(parents=True, exist_ok=True)
        included = f"--include={','.join(PACKAGES)}"
        call("debootstrap", "--arch=arm64", "--variant=minbase", included, RELEASE, str(half))
        half.rename(self.path)

    def environment(self, name: str, requirements: Sequence[str]) -> str:
        """Python of an environment that holds ``requirements``, as a path inside the root."""
        python = f"/env/{name}-{digest(requirements)}/bin/python"
        ready = self.path / Path(python).parents[1].relative_to("/") / ".ready"
        if not ready.exists():
            self.run("python3", "-m", "venv", "--clear", str(Path(python).parents[1]))
            platforms = [f"--platform={platform}" for platform in PLATFORMS]
            there = (f"--python-version={PYTHON}", "--implementation=cp", *platforms)
            packages = ready.parent / "lib" / f"python{PYTHON}" / "site-packages"
            unpack(packages, requirements, *there)
            ready.touch()
        return python

    def beside(self, name: str, requirements: Sequence[str]) -> Path:
        """The same packages for this machine, as a folder for PYTHONPATH.

        What differs then is the processor: OpenCV 5.0 enlarges a mask otherwise than 4.11 does.
        """
        ours = "{}.{}".format(*sys.version_info)
        packages = self.path.parent / f"here-{name}-{digest((ours, *requirements))}"
        if not packages.exists():
            half = packages.with_suffix(".tmp")
            shutil.rmtree(half, ignore_errors=True)
            unpack(half, requirements)
            half.rename(packages)
        return packages

    def install(self, python: str, wheel: Path) -> None:
        """Put our own wheel into an environment, over the one of an earlier run."""
        inside = self.copy(wheel, f"/wheels/{wheel.name}")
        over = ("--no-index", "--no-deps", "--force-reinstall")
        self.run(python, "-m", "pip", "install", "-q", *over, inside)

    def copy(self, source: Path, inside: str) -> str:
        """Copy a file or a folder into the root, over what was there; its path inside."""
        target = self.path / inside.lstrip("/")
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        return inside

    def run(self, *command: str, show: bool = False, **environment: str) -> str:
        """Run a program inside, with /proc and /dev mounted for it alone; what it printed.

        Args:
            command: the program and its arguments.
            show: also print each line as it comes, for what takes long.
            environment: variables beside the few that every program gets.

        Raises:
            RuntimeError: it failed; with the end of what it said.
        """
        inside = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        words = ["unshare", "--mount", "sh", "-ec", ENTER, "sh", str(self.path), *command]
        return call(*words, show=show, env={**inside, **environment})


def unpack(packages: Path, requirements: Sequence[str], *options: str) -> None:
    """Fill a folder from wheels, without looking into them."""
    call(
        *(sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--no-compile"),
        *("--upgrade", f"--target={packages}", *options, *requirements),
    )


def call(*command: str, show: bool = False, env: dict[str, str] | None = None) -> str:
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if show:
                print(line, end="", flush=True)
    said = "".join(lines)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{said[-4000:]}")
    return said


def digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:12]
