"""An arm64 Debian beside this machine's own system: debootstrap fills it, QEMU executes it.

What takes minutes is made once and kept in ``$EDGE_MDEQ_ARM64``, else ``~/.cache/edge-mdeq/arm64``:
the root by its release and packages, an environment in it by the requirements of its wheels.
Wheels are downloaded by this machine's pip, for the other one, so no package is compiled.
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
        if self.path.exists():
            return
        half = self.path.with_suffix(".tmp")
        shutil.rmtree(half, ignore_errors=True)  # of a run that was killed
        half.parent.mkdir(parents=True, exist_ok=True)
        included = f"--include={','.join(PACKAGES)}"
        call("debootstrap", "--arch=arm64", "--variant=minbase", included, RELEASE, str(half))
        half.rename(self.path)

    def environment(self, name: str, requirements: Sequence[str]) -> str:
        """Python of an environment that holds ``requirements``, as a path inside the root."""
        python = f"/env/{name}-{digest(requirements)}/bin/python"
        ready = self.path / Path(python).parents[1].relative_to("/") / ".ready"
        if not ready.exists():
            wheels = self.path / "wheels" / name
            shutil.rmtree(wheels, ignore_errors=True)
            platforms = [f"--platform={platform}" for platform in PLATFORMS]
            call(
                *(sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"),
                *(f"--python-version={PYTHON}", "--implementation=cp", *platforms),
                *("-d", str(wheels), *requirements),
            )
            self.run("python3", "-m", "venv", "--clear", str(Path(python).parents[1]))
            offline = ("--no-index", f"--find-links=/wheels/{name}")
            self.run(python, "-m", "pip", "install", "-q", *offline, *requirements)
            ready.touch()
        return python

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

    def run(self, *command: str, **environment: str) -> str:
        """Run a program inside, with /proc and /dev mounted for it alone; what it printed.

        Raises:
            RuntimeError: it failed; with the end of what it said.
        """
        inside = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        words = ["unshare", "--mount", "sh", "-ec", ENTER, "sh", str(self.path), *command]
        return call(*words, env={**inside, **environment})


def call(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}"
        )
    return done.stdout


def digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:12]
