"""Models and bundles that several folders share, each made once per session.

Torch is imported only when a fixture that needs it is used.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_data, which several folders share

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as behind nohup; children would inherit it,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and Ctrl-C is tried on them

SEGMENTER = ModelCard(
    ModelConfig(
        task="segmentation",
        classes=4,
        channels=(8, 16, 16),
        expansion=1,
        groups=8,
    ),
    InputConfig(64, 96),
    labels=("road", "sky", "tree", "car"),
    palette=((128, 64, 128), (70, 130, 180), (107, 142, 35), (0, 0, 142)),
    provenance=Provenance("tiny-segmenter", "CC0-1.0", "random numbers"),
    metrics={"mIoU": 0.25},
)
CLASSIFIER = ModelCard(
    ModelConfig(
        task="classification",
        classes=5,
        channels=(8, 16),
        expansion=1,
        groups=8,
        downsample_times=1,
        head_channels=(4, 8),
        final_channels=16,
    ),
    InputConfig(32, 32),
    labels=("ant", "bee", "cat", "dog", "eel"),
    provenance=Provenance("tiny-classifier", "CC0-1.0", "random numbers"),
)
RUNGS = (1, 2, 4)
READY = os.environ.get("EDGE_MDEQ_TEST_BUNDLES")  # a folder, where these tests run without torch


def save_tiny(card: ModelCard, path: Path, seed: int) -> Path:
    """Save a model with random weights in which no part is at its default or without effect."""
    import torch

    from edge_mdeq.model import MDEQ
    from edge_mdeq.solvers import FixedPoint, solve
    from edge_mdeq.weights import save_weights

    generator = torch.Generator().manual_seed(seed)
    model = MDEQ(card.model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 2 and not name.endswith("gain"):
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
            elif name.endswith("bias"):
                value.copy_(0.4 * torch.rand(value.shape, generator=generator) - 0.2)
            else:
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        # The injection outweighs the state, scale 0 the other scales: f contracts.
        for i, block in enumerate(model.cell.blocks):
            block.conv2.gain *= 0.3  # type: ignore[operator]
            if i > 0:
                block.norm3.weight *= 0.2  # type: ignore[operator]
        for row in model.cell.fuse:
            for j, link in enumerate(row):  # type: ignore[arg-type]
                norms = [m for m in link.modules() if isinstance(m, torch.nn.GroupNorm)]
                if j > 0 and norms:
                    norms[-1].weight *= 0.1
        for post in model.cell.post:
            post.norm.weight *= 0.1  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain mean over the forwards below
        model.train()
        for _ in range(4):
            image = torch.randn(2, 3, card.input.height, card.input.width, generator=generator)
            u = model.inject(image)
            model.readout(solve(model.bind(u), model.zero_state(u), FixedPoint(), 4).value)
    save_weights(model.eval(), card, path)
    return path


def pytest_collection_finish() -> None:
    """Half a million objects are there now, for good: each look at them takes most of a second."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A command that was tried in this process has let go of them."""
    another_file = nextitem is None or nextitem.path != item.path
    if another_file and gc.get_freeze_count() == 0:  # which counts them
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key of this device, which engines and caches are tagged with, is the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Commands tried in this process take signals over; what they leave must not reach others."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def segmenter_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a segmentation model with three scales."""
    return save_tiny(SEGMENTER, tmp_path_factory.mktemp("seg") / "segmenter.safetensors", 1)


@pytest.fixture(scope="session")
def classifier_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a classifier with two scales."""
    return save_tiny(CLASSIFIER, tmp_path_factory.mktemp("cls") / "classifier.safetensors", 2)


def export_once(weights: Path) -> Path:
    from quick_exports import traced_once, two_images

    from mdeq_export import ExportSettings, export_bundle

    out = weights.parent / f"{weights.stem}.mdeq"
    with two_images(), traced_once():
        export_bundle(weights, out, ExportSettings(iterations=RUNGS))
    return out


@pytest.fixture(scope="session")
def segmenter_bundle(request: pytest.FixtureRequest) -> Path:
    """The segmenter's bundle with rungs 1, 2 and 4. Read it, never change it."""
    return bundle_of("segmenter", request)


@pytest.fixture(scope="session")
def classifier_bundle(request: pytest.FixtureRequest) -> Path:
    """The classifier's bundle with rungs 1, 2 and 4. Read it, never change it."""
    return bundle_of("classifier", request)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Where bundles were made elsewhere, a test that makes one itself is for a workstation."""
    with workshop_only():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """As for the setup."""
    with workshop_only():
        return (yield)


@contextmanager
def workshop_only() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if READY is None or error.name not in ("torch", "onnx", "onnx_ir", "safetensors"):
            raise
        pytest.skip(f"needs {error.name}")


def bundle_of(model: str, request: pytest.FixtureRequest) -> Path:
    """Exported here, or found in a folder of ready ones: a device has no torch."""
    if READY is not None:
        return Path(READY) / f"{model}.mdeq"
    return export_once(request.getfixturevalue(f"{model}_weights"))


@pytest.fixture
def own_copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a bundle, or weights and their card, for a test to spoil."""

    def copy(path: Path) -> Path:
        if path.is_dir():
            return Path(shutil.copytree(path, tmp_path / path.name))
        shutil.copy(path.with_suffix(".json"), tmp_path)
        return Path(shutil.copy(path, tmp_path))

    return copy
