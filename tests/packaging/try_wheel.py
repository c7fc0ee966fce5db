"""Builds a wheel and an sdist and tries both in fresh environments, one of them without torch.

Run by ``make wheel``. It is a script, not a pytest suite, since what it tests is an installation.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLE_WRITER = """
import torch
from pathlib import Path
import edge_mdeq
from edge_mdeq.config import InputConfig, ModelCard, ModelConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.weights import save_weights
from mdeq_export import ExportSettings
torch.manual_seed(0)
config = ModelConfig("segmentation", 3, (8, 16), expansion=2)
model = MDEQ(config)
model.train().inject(torch.randn(4, 3, 32, 64))
folder = Path({folder!r})
card = ModelCard(config, InputConfig(32, 64), ("a", "b", "c"))
save_weights(model, card, folder / "w.safetensors")
settings = ExportSettings(iterations=(1, 2))  # random weights need not converge further
edge_mdeq.export(folder / "w.safetensors", folder / "tiny.mdeq", settings)
"""
DEVICE = """
import sys
import numpy as np
import edge_mdeq
model = edge_mdeq.load({bundle!r})
result = model(np.zeros((32, 64, 3), np.uint8))
assert result.output.shape == (32, 64), result.output.shape
for absent in ("torch", "onnx", "onnx_ir", "safetensors"):
    assert absent not in sys.modules, absent
    try:
        __import__(absent)
    except ImportError:
        continue
    raise SystemExit(f"{{absent}} is installed, this environment proves nothing")
try:
    edge_mdeq.export("w.safetensors", "x.mdeq")
except ImportError as error:
    assert "edge-mdeq[export]" in str(error), error
else:
    raise SystemExit("export without torch should have named its extra")
print("device environment: torch-free, answers a frame, names the missing extra")
"""


def main() -> None:
    """Build, look inside, install, use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "-q", "--outdir", str(folder / "dist"), str(ROOT))
        (wheel,) = (folder / "dist").glob("*.whl")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        check_contents(wheel, sdist)
        run(sys.executable, "-c", BUNDLE_WRITER.format(folder=str(folder)))
        for kind, package in (("wheel", wheel), ("sdist", sdist)):
            python = environment(folder / kind)
            run(python, "-m", "pip", "install", "-q", f"{package}[onnxruntime]")
            # -P and a foreign folder, so that the checkout cannot stand in for the installation
            code = DEVICE.format(bundle=str(folder / "tiny.mdeq"))
            run(python, "-P" if sys.version_info >= (3, 11) else "-s", "-c", code, cwd=folder)
            script = Path(python).with_name("edge-mdeq")
            run(str(script), "inspect", str(folder / "tiny.mdeq"), cwd=folder, quiet=True)
            print(f"{kind}: ok")


def check_contents(wheel: Path, sdist: Path) -> None:
    """All three packages, typed; no tests in the wheel; no weights anywhere."""
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("edge_mdeq", "mdeq_export", "mdeq_runtime"):
        assert f"{package}/py.typed" in names, f"{package}/py.typed is not in the wheel"
    assert not [n for n in names if n.startswith(("tests", "samples", "export/", "runtime/"))]
    with tarfile.open(sdist) as archive:
        names += archive.getnames()
    assert not [n for n in names if n.endswith((".safetensors", ".onnx", ".bin"))]


def environment(folder: Path) -> str:
    """A fresh virtual environment; its Python."""
    run(sys.executable, "-m", "venv", str(folder))
    return str(folder / "bin" / "python")


def run(*command: str, cwd: Path | None = None, quiet: bool = False) -> None:
    """Run a command; stop with its exit code if it fails."""
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, cwd=cwd, stdout=output)
    if done.returncode:
        sys.exit(f"failed with {done.returncode}: {' '.join(command)[:500]}")


if __name__ == "__main__":
    main()
