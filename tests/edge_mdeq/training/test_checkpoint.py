"""Checkpoints: they survive a full disk, execute nothing, and are refused when damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_training import environment

from edge_mdeq.errors import WeightsError
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3.0)}, "epoch": 2, "seconds": 1.5}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert (loaded["epoch"], loaded["seconds"]) == (2, 1.5)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"checkpoint\.pt is not a readable checkpoint"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*; start without --resume"):
        load_checkpoint(tmp_path / "checkpoint.pt")


# Writes a small checkpoint, then one that does not fit; prints what it is told.
OVERFULL = """
import sys
from pathlib import Path
import torch
from edge_mdeq.errors import WeightsError
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"w": torch.ones(1000)})
try:
    save_checkpoint(path, {"w": torch.zeros(200_000)})
except WeightsError as error:
    print(error)
assert torch.equal(load_checkpoint(path)["w"], torch.ones(1000))
"""


def overfill(folder: Path, prefix: str = "") -> str:
    """Run ``OVERFULL`` in ``folder``, after the shell commands ``prefix``; what it was told."""
    argv = [sys.executable, "-c", OVERFULL, str(folder / "checkpoint.pt")]
    shell = ["bash", "-c", f'{prefix} exec "$@"', "bash", *argv]
    result = subprocess.run(
        shell, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [p.name for p in folder.iterdir()] == ["checkpoint.pt"]  # nothing half-written
    return result.stdout


def test_a_full_disk_leaves_the_previous_checkpoint_and_is_named(small_disk: Path) -> None:
    message = overfill(small_disk)
    assert "cannot write the checkpoint" in message
    assert "No space left on device" in message
    assert "the previous one, if any, is intact: make room and go on with --resume" in message


def test_so_does_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    message = overfill(tmp_path, "ulimit -f 100;")  # blocks of 1 kB
    assert "File too large" in message
    assert "the previous one, if any, is intact" in message
