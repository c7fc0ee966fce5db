"""Every configuration with a name: builds, has its published size, runs, learns, freezes, exports.

Each at a small image, which changes no weight: the coarsest scale has 2 x 2 pixels. A smaller one
would leave the norms of the narrow models single numbers to normalise, and their kernels without a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mdeq_export.pieces
from edge_mdeq.config import InputConfig, read_card
from edge_mdeq.errors import ConfigError
from edge_mdeq.gradients import implicit
from edge_mdeq.model import MDEQ, State
from edge_mdeq.registry import REGISTRY, Entry, lookup, same_architecture
from edge_mdeq.solvers import FixedPoint, solve
from edge_mdeq.training.recipe import read_recipe
from mdeq_export.graphs import write_profile
from mdeq_export.images import scene
from mdeq_export.pieces import Advance, Inject, Residual, trace, trace_pieces
from mdeq_export.profiles import PROFILES

ROOT = Path(__file__).parents[2]

# All parameters, and those of f. The published rows' were counted in the published second code. Two
# were not: CIFAR LARGE_reg has the tensors of LARGE, and ImageNet LARGE_reg those of LARGE without
# the last norms' gains and biases, which are 2 x (80 + 160 + 320 + 640) = 2,400 numbers.
PARAMETERS = {
    "cifar-tiny": (158_890, 111_696),
    "cifar-large": (11_097_438, 8_715_232),
    "cifar-large-reg": (11_097_438, 8_715_232),
    "imagenet-small": (16_808_936, 8_716_192),
    "imagenet-small-reg": (18_613_496, 8_715_232),
    "imagenet-large": (67_063_624, 54_422_800),
    "imagenet-large-reg": (67_061_224, 54_420_400),
    "imagenet-xl": (90_463_280, 77_699_952),
    "cityscapes-small": (8_968_467, 8_716_192),
    "cityscapes-large": (55_955_859, 54_422_800),
    "cityscapes-xl": (79_551_755, 77_699_952),
    # Our own, counted from the shapes of a published checkpoint of such a size.
    "camvid-nano": (1_854_267, 1_790_208),
    "camvid-micro": (466_147, 449_152),
    "clothing-small": (1_984_266, 1_397_808),
    "imagenet-nano": (4_329_672, 1_790_208),
    "cityscapes-nano": (1_856_195, 1_790_208),
}
EVALUATIONS = 2


def small_input(entry: Entry) -> InputConfig:
    """The entry's input at the size of the tests."""
    side = 2 * entry.model.stride
    return replace(entry.input, height=side, width=side)


@pytest.fixture(scope="module", params=REGISTRY)
def entry(request: pytest.FixtureRequest) -> Entry:
    """One after the other: only one model is in memory at a time."""
    return REGISTRY[request.param]


@pytest.fixture(scope="module")
def model(entry: Entry, build: Callable[..., MDEQ]) -> MDEQ:
    """In eval mode, and with nothing left at its default value."""
    return build(entry.model)


@pytest.fixture(scope="module")
def frozen(model: MDEQ) -> MDEQ:
    return model.freeze()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone after the test: the graphs' weights are 1.7 GB in all."""
    with TemporaryDirectory() as path:
        yield Path(path)


@torch.no_grad()
def run(model: MDEQ, config: InputConfig) -> tuple[State, Tensor]:
    """Injection, ``EVALUATIONS`` of f and readout of a picture of shapes."""
    picture = torch.from_numpy(scene(3, config.height, config.width)[None])
    u = Inject(model, config)(picture)
    z = solve(model.bind(u), model.zero_state(u), FixedPoint(), EVALUATIONS).value
    return z, model.readout(z)


def relative(a: NDArray[np.float32] | Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((torch.as_tensor(a) - b).abs().max() / b.abs().max())


def test_every_entry_has_a_size_to_compare_with() -> None:
    assert PARAMETERS.keys() == REGISTRY.keys()


def test_it_has_as_many_parameters_as_published(entry: Entry, model: MDEQ) -> None:
    whole, cell = PARAMETERS[entry.name]
    assert sum(p.numel() for p in model.parameters()) == whole
    assert sum(p.numel() for p in model.cell.parameters()) == cell


def test_it_answers(entry: Entry, model: MDEQ) -> None:
    config = small_input(entry)
    z, logits = run(model, config)
    assert [tuple(x.shape) for x in z] == entry.model.state_shapes(1, config.height, config.width)
    classes = (1, entry.model.classes)
    expected = classes if entry.model.task == "classification" else classes + z[0].shape[2:]
    assert logits.shape == expected
    for x in (*z, logits):
        assert x.isfinite().all()
        assert x.std() > 1e-3


def test_every_parameter_gets_a_gradient(entry: Entry, model: MDEQ) -> None:
    """In training mode; but batch norms take out what the biases before them add, and stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    try:
        torch.manual_seed(0)  # of the dropout
        config = small_input(entry)
        u = model.inject(torch.randn(2, 3, config.height, config.width))
        f = model.bind(u)
        with torch.no_grad():
            z = solve(f, model.zero_state(u), FixedPoint(), EVALUATIONS).value
        logits = model.readout(implicit(f, z, FixedPoint(), EVALUATIONS, tol=0.0))
        target = torch.randint(entry.model.classes, (2, *logits.shape[2:]))
        F.cross_entropy(logits, target).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def test_it_freezes_to_the_same_function(entry: Entry, model: MDEQ, frozen: MDEQ) -> None:
    kinds = {type(module).__name__ for module in frozen.modules()}
    assert not kinds & {"WeightNormConv2d", "BatchNorm2d"}
    assert not any(p.requires_grad for p in frozen.parameters())
    (z, logits), (found_z, found) = (run(m, small_input(entry)) for m in (model, frozen))
    assert relative(found, logits) < 1e-4
    assert max(relative(a, b) for a, b in zip(found_z, z, strict=True)) < 1e-4


TRACED: dict[Any, ir.Graph] = {}


def trace_once(module: nn.Module, args: tuple[object, ...], dynamic: bool = False) -> ir.Graph:
    """``trace``, but what has no weights only once for all entries with such states."""
    assert not dynamic
    if not isinstance(module, Advance | Residual):
        return trace(module, args)
    key = (type(module), *(tuple(x.shape) for x in tree_leaves(args)))
    if key not in TRACED:
        TRACED[key] = trace(module, args)
    return TRACED[key]


def test_it_exports(
    entry: Entry, frozen: MDEQ, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdeq_export.pieces, "trace", trace_once)
    config = small_input(entry)
    pieces = trace_pieces(frozen, config, FixedPoint())
    (rung,) = write_profile(pieces, PROFILES["ort-cpu"], (EVALUATIONS,), folder).rungs
    session = ort.InferenceSession(str(folder / rung.graph), providers=["CPUExecutionProvider"])
    feeds = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
    feeds["image"] = scene(3, config.height, config.width)[None]
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    z, logits = run(frozen, config)
    for i, x in enumerate(z):
        assert relative(found[f"next_state_{i}"], x) < 1e-4
    if entry.model.task == "classification":
        assert relative(found["output"], logits.softmax(dim=1)) < 1e-3
        return
    size = (config.height, config.width)
    large = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
    first, second = large.topk(2, dim=1).values.unbind(dim=1)
    clear = (first - second > 1e-3 * logits.abs().max()).numpy()  # rounding decides the others
    assert clear.mean() > 0.9
    assert (found["output"] == large.argmax(dim=1).numpy())[clear].all()


# What belongs to a name


def test_a_name_is_found_however_it_is_written() -> None:
    assert lookup("imagenet-small") is REGISTRY["imagenet-small"]
    for wrong, meant in (
        ("ImageNet_Small", "imagenet-small"),
        ("imagenet-smal", "imagenet-small"),
        ("cifar large", "cifar-large"),
    ):
        with pytest.raises(
            ConfigError, match=f"no configuration is called '{wrong}'; did you.*{meant}"
        ):
            lookup(wrong)
    with pytest.raises(ConfigError, match=r"known: cifar-tiny, .*cityscapes-nano"):
        lookup("resnet")


def test_labels_and_palettes_fit_the_classes(entry: Entry) -> None:
    for found in (entry.labels, entry.palette):
        assert len(found) in (0, entry.model.classes)
        assert len(set(found)) == len(found)


def test_an_entry_is_recognised_by_its_architecture(entry: Entry) -> None:
    assert entry in same_architecture(replace(entry.model, dropout=0.5, norm_momentum=0.5))
    assert entry not in same_architecture(replace(entry.model, groups=2))


@pytest.mark.parametrize("name", ["camvid-nano", "clothing-small"])
def test_a_sample_model_is_trained_as_it_is_registered(name: str) -> None:
    recipe, entry = read_recipe(ROOT / f"samples/recipes/{name}.toml"), lookup(name)
    assert recipe.model == entry.model
    assert recipe.input == entry.input
    assert recipe.data.labels in ((), entry.labels)
    for path in (ROOT / "samples/models" / name).glob("*.json"):
        card = read_card(path)
        assert (card.model, card.input, card.labels) == (entry.model, entry.input, entry.labels)
