"""Made-up Jetsons: a folder that stands for the machine, and packages that need no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, distribution
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KIT = ROOT / "runtime" / "device"
RELEASES = {  # as /etc/nv_tegra_release begins
    5: "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
    6: "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    7: "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
}
PARTS = (  # of JetPack, which the script looks for
    "usr/lib/python3/dist-packages/cv2/__init__.py",
    "usr/lib/python3/dist-packages/tensorrt/__init__.py",
    "usr/local/cuda/bin/nvcc",
)

# Builds a wheel that remembers what it was built with: pycuda's real build needs CUDA's compiler.
BACKEND = """
import os, shutil, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "pycuda-2026.1-py3-none-any.whl"
    found = {"nvcc": shutil.which("nvcc"), "home": not os.environ.get("PYTHONNOUSERSITE")}
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        info = "pycuda-2026.1.dist-info"
        wheel.writestr("pycuda/__init__.py", "VERSION_TEXT = '2026.1'\\nBUILT_WITH = %r" % found)
        wheel.writestr("pycuda/driver.py", "")
        wheel.writestr(info + "/METADATA", open("PKG-INFO").read())
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: us\\n"
                       "Root-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""
SDIST = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: pycuda\nVersion: 2026.1\n",
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\n"
    "backend-path = ['.']\n",
    "backend.py": BACKEND,
}

Jetson = Callable[..., Path]
Install = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Jetson:
    """Makes a root folder for a JetPack, with all of its parts but ``without``."""

    def make(jetpack: int | None, without: Iterable[str] = ()) -> Path:
        root = tmp_path_factory.mktemp("root")
        if jetpack is not None:
            (root / "etc").mkdir()
            (root / "etc/nv_tegra_release").write_text(f"{RELEASES[jetpack]}\n")
        for part in PARTS:
            if not any(name in part for name in without):
                path = root / part
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o755)
        return root

    return make


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what this test's Python has of edge-mdeq's dependencies, and of OpenCV.

    It stands for the system's packages, which an environment of the kit is to use.
    """
    folder = tmp_path_factory.mktemp("system")
    for package in closure("edge-mdeq", "onnxruntime") | {"opencv-python"}:
        found = distribution(package)
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            source = Path(str(found.locate_file(name)))
            if source.exists() and not (folder / name).exists():
                (folder / name).symlink_to(source)
    return folder


def closure(name: str, extra: str) -> set[str]:
    """The packages that one needs, directly or not; itself is left out."""
    from packaging.requirements import Requirement

    def needed(package: Distribution, extra: str) -> set[str]:
        wanted = (Requirement(text) for text in package.requires or ())
        return {
            each.name
            for each in wanted
            if each.marker is None or each.marker.evaluate({"extra": extra})
        }

    left, seen = needed(distribution(name), extra), set()
    while left:
        one = left.pop()
        seen.add(one)
        left |= needed(distribution(one), "") - seen
    return seen


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages, as it would be copied to a board without a network."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(folder / "pycuda-2026.1.tar.gz", "w:gz") as archive:
        for name, text in SDIST.items():
            entry = tarfile.TarInfo(f"pycuda-2026.1/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    info = "opencv_python-99.0.dist-info"
    with zipfile.ZipFile(folder / "opencv_python-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("cv2/__init__.py", "raise ImportError('pip hid the system OpenCV')")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: opencv-python\nVersion: 99.0"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture(scope="session")
def package(wheels: Path) -> Path:
    """The wheel of edge-mdeq."""
    (found,) = wheels.glob("edge_mdeq-*.whl")
    return found


@pytest.fixture(scope="session")
def environ(system: Path) -> dict[str, str]:
    """Of a process on a made-up Jetson."""
    clean = {name: value for name, value in os.environ.items() if not re.match("PIP_|PYTHON", name)}
    return clean | {"PYTHON": sys.executable, "PYTHONPATH": str(system), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def install(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Runs the script on the machine that a root folder stands for."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # so that the checkout is not found by chance

    def run(root: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(KIT / "install.sh"), *map(str, arguments)],
            env=environ | {"EDGE_MDEQ_ROOT": str(root)} | more,
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
