"""What the tests of training share: one thread for torch, and a disk that fills up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tuning import Trained

sys.path.insert(0, str(Path(__file__).parent))  # for what several files here share


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are no work for two threads, and sums must come out as in other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; ``mount -o remount,size=...`` makes room."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system of its own needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A segmenter's weights that may be tuned, and the data that they were trained on."""
    from tiny_data import write_camvid
    from tiny_training import SEGMENTER
    from tuning import train_on

    root = tmp_path_factory.mktemp("segmenter")
    data = write_camvid(root / "data")
    return train_on(SEGMENTER, data, root / "run"), data


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same of a classifier."""
    from tiny_data import write_folder
    from tiny_training import CLASSIFIER
    from tuning import train_on

    root = tmp_path_factory.mktemp("classifier")
    data = write_folder(root / "data")
    return train_on(CLASSIFIER, data, root / "run"), data


@pytest.fixture(params=["segmenter", "classifier"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Weights of either task and their data."""
    made: Trained = request.getfixturevalue(request.param)
    return made
