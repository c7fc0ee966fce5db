"""Runs the device half of the tests in every Python that is supported and found, without torch.

`make test-pythons`. The oldest one gets the oldest NumPy and ONNX Runtime that are supported, the
others the newest. A script, like try_wheel.py: what it tests are installations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12")
OLDEST = ("numpy==1.26.*", "onnxruntime==1.23.*")
HERE = "not clock and not gpu and not device and not arm64 and not fuzz and not soak"
VERSIONS = """
import importlib.util, platform, cv2, numpy, onnxruntime
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
print("Python", platform.python_version(), "NumPy", numpy.__version__, end=" ")
print("ONNX Runtime", onnxruntime.__version__, "OpenCV", cv2.__version__, flush=True)
"""
BUNDLES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest
models = ("segmenter", conftest.SEGMENTER, 1), ("classifier", conftest.CLASSIFIER, 2)
for name, card, seed in models:
    conftest.export_once(conftest.save_tiny(card, Path(sys.argv[2]) / f"{name}.safetensors", seed))
"""


def main() -> None:
    """Build, then an environment for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "build", "-q", "--wheel", "--outdir", str(folder), str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        made = [sys.executable, "-c", BUNDLES, str(ROOT / "tests"), str(folder)]
        subprocess.run(made, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        failed = []
        for version in PYTHONS:
            python = find(version)
            if python is None:
                print(f"Python {version}: not found, not covered")
            elif not passes(python, version, wheel, folder):
                failed.append(version)
    if failed:
        sys.exit(f"failed on Python {', '.join(failed)}")


def find(version: str) -> str | None:
    """An interpreter that runs: some machines have names that lead nowhere."""
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for name in (f"python{version}", *others):
        found = shutil.which(str(name))
        if found and not subprocess.run([found, "-c", ""], capture_output=True).returncode:
            return found
    return None


def passes(python: str, version: str, wheel: Path, folder: Path) -> bool:
    """Whether the device half of the suite passes there."""
    place = folder / f"env-{version}"
    subprocess.run([python, "-m", "venv", str(place)], check=True)
    inside = str(place / "bin" / "python")
    stack = OLDEST if version == PYTHONS[0] else ()
    wanted = [f"{wheel}[onnxruntime,camera,web]", "pytest>=8.3", *stack]
    subprocess.run([inside, "-m", "pip", "install", "-q", *wanted], check=True)
    # in a foreign folder, so that the checkout cannot stand in for the installation
    subprocess.run([inside, "-c", VERSIONS], check=True, cwd=folder)
    command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", HERE]
    command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    command += [str(ROOT / "tests" / "runtime")]
    environment = os.environ | {"EDGE_MDEQ_TEST_BUNDLES": str(folder), "OMP_NUM_THREADS": "1"}
    return not subprocess.run(command, env=environment, cwd=folder).returncode


if __name__ == "__main__":
    main()
