"""The tiled readout is the plain one: the same classes, the same confidence, smaller tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from lowering import proto_of, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import ConfigError
from edge_mdeq.model import MDEQ, State
from edge_mdeq.registry import lookup
from mdeq_export.pieces import trace
from mdeq_export.readouts import FLOOR, NARROW, ReadMask, TiledReadMask, count_tiles

TIE = 1e-4  # logits nearer than this may swap places by rounding
BATCH = 3


def segmenter(*channels: int, classes: int = 6, downsample_times: int = 2) -> ModelConfig:
    return ModelConfig(
        task="segmentation",
        classes=classes,
        channels=channels,
        expansion=1,
        downsample_times=downsample_times,
    )


# A configuration, and an image's size with few rows at scale 0: every number of tiles is tried.
CASES: Mapping[str, tuple[ModelConfig, int, int]] = {
    "one scale": (segmenter(16), 20, 28),
    "one narrow and one wide scale": (segmenter(8, NARROW + 8), 24, 40),
    "two narrow scales": (segmenter(16, NARROW), 24, 40),
    "three scales": (segmenter(8, 16, 16), 48, 80),
    "the mask as large as scale 0": (segmenter(8, 16, downsample_times=0), 10, 12),
    "the mask twice as large": (segmenter(8, 16, 24, downsample_times=1), 24, 16),
    "two classes": (segmenter(8, 16, classes=2), 16, 24),
    "cityscapes-small": (lookup("cityscapes-small").model, 64, 128),
    "cityscapes-large": (lookup("cityscapes-large").model, 32, 96),
    "a single row of the coarsest scale": (lookup("camvid-nano").model, 32, 32),
}
case = pytest.mark.parametrize("name", CASES)


def build(config: ModelConfig, seed: int = 0) -> MDEQ:
    """A model in eval whose readout has no part at its default or without effect; not frozen."""
    generator = torch.Generator().manual_seed(seed)
    model = MDEQ(config).eval()
    with torch.no_grad():
        for key, value in model.readout.state_dict().items():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5)
            elif key.endswith(("weight", "running_var")):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
    return model


def states(config: ModelConfig, height: int, width: int, batch: int = BATCH) -> State:
    generator = torch.Generator().manual_seed(1)
    shapes = config.state_shapes(batch, height, width)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@torch.no_grad()
def margins(model: MDEQ, z: State, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Class of every pixel (B, H, W), and by how much it wins, in double precision."""
    logits = model.readout.double()(tuple(x.double() for x in z))
    model.readout.float()
    full = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)
    best = full.topk(2, dim=1)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


def check_answer(found: Any, expected: tuple[Tensor, Tensor], margin: Tensor) -> None:
    """(mask, confidence) beside those of ``ReadMask``."""
    for tensor, right in zip(found, expected, strict=True):
        assert tensor.shape == right.shape
        assert np.asarray(tensor).dtype == right.numpy().dtype
    mask, confidence = (np.asarray(x) for x in found)
    clear = margin.numpy() > TIE
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(mask[clear], expected[0].numpy()[clear])
    np.testing.assert_allclose(confidence, expected[1].numpy(), atol=1e-5)


# The same answer


@case
@torch.no_grad()
def test_it_answers_as_the_plain_readout_in_any_number_of_tiles(name: str) -> None:
    config, height, width = CASES[name]
    model, z = build(config), states(*CASES[name])
    plain, frozen = ReadMask(model, height, width), model.freeze()
    expected, (classes, margin) = plain(z), margins(model, z, height, width)
    assert len(classes.unique()) > 1
    assert expected[1].std() > 0.01, "worth comparing"
    for tiles in range(1, z[0].shape[2] + 1):
        readout = TiledReadMask(frozen, height, width, tiles)
        assert len(readout.tiles) == tiles
        check_answer(readout(z), expected, margin)


@torch.no_grad()
def test_the_number_of_tiles_is_counted_if_not_given() -> None:
    """At a size that needs several."""
    config, height, width = lookup("cityscapes-small").model, 64, 2048
    model = build(config)
    readout = TiledReadMask(model.freeze(), height, width)
    assert len(readout.tiles) == count_tiles(config, height, width) > 1
    z = states(config, height, width, batch=1)
    _, margin = margins(model, z, height, width)
    check_answer(readout(z), ReadMask(model, height, width)(z), margin)


@pytest.mark.parametrize(
    ("name", "open_batch"),
    [
        ("one scale", False),
        ("one narrow and one wide scale", False),
        ("the mask as large as scale 0", False),
        ("three scales", True),
        ("cityscapes-small", False),
    ],
)
def test_its_graph_answers_as_the_plain_readout(name: str, open_batch: bool) -> None:
    """In ONNX Runtime, without and with its own rewrites; 3 tiles have two edges and a middle."""
    config, height, width = CASES[name]
    model, z = build(config), states(*CASES[name])
    readout = TiledReadMask(model.freeze(), height, width, tiles=3)
    traced_with = states(config, height, width, 2) if open_batch else z
    graph = trace(readout, (tuple(torch.zeros_like(x) for x in traced_with),), open_batch)
    with torch.no_grad():
        expected, (_, margin) = (
            ReadMask(model, height, width)(z),
            margins(model, z, height, width),
        )
    feeds = {str(i.name): x.numpy() for i, x in zip(graph.inputs, z, strict=True)}
    check_answer(run(graph, feeds).values(), expected, margin)
    rewritten = ort.InferenceSession(
        proto_of(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    check_answer(rewritten.run(None, feeds), expected, margin)


# What it saves


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operator makes, views excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@torch.no_grad()
def largest(readout: nn.Module, config: ModelConfig, height: int, width: int) -> int:
    """Bytes of the largest tensor in a forward of one image, which nothing is computed for."""
    shapes = config.state_shapes(1, height, width)
    z = tuple(torch.empty(shape, device="meta") for shape in shapes)
    with Largest() as noted:
        readout.to("meta")(z)
    return noted.bytes


def allowed(config: ModelConfig, height: int, width: int) -> int:
    """All states of one image together, or the floor."""
    shapes = config.state_shapes(1, height, width)
    return max(FLOOR, sum(4 * int(np.prod(shape)) for shape in shapes))


SIZES = [
    ("cityscapes-small", 1024, 2048),
    ("cityscapes-small", 512, 1024),
    ("cityscapes-large", 1024, 2048),
    ("cityscapes-xl", 1024, 2048),
    ("cityscapes-nano", 512, 1024),
    ("camvid-nano", 736, 992),
]


@pytest.mark.parametrize(("entry", "height", "width"), SIZES)
def test_no_tensor_is_larger_than_the_states_with_as_few_tiles_as_that_takes(
    entry: str, height: int, width: int
) -> None:
    """Measured, not computed as ``count_tiles`` does. The plain readout's are many times larger."""
    config = lookup(entry).model
    model, limit = MDEQ(config).freeze(), allowed(config, height, width)
    tiles = count_tiles(config, height, width)
    assert tiles > 1
    assert largest(TiledReadMask(model, height, width, tiles), config, height, width) <= limit
    # Tiles at an edge have one neighbour, and all are of a whole number of rows.
    fewer = largest(TiledReadMask(model, height, width, tiles - 1), config, height, width)
    assert fewer > 0.9 * limit
    assert largest(ReadMask(model, height, width), config, height, width) > 2 * limit


def test_what_is_small_is_one_tile() -> None:
    assert count_tiles(lookup("camvid-nano").model, 192, 256) == 1
    assert count_tiles(lookup("cityscapes-small").model, 64, 128) == 1


def test_there_are_never_more_tiles_than_rows() -> None:
    """A row of the hidden layer of these states is larger than all of them."""
    config = replace(segmenter(8, 8, 8, 8, 8), classes=255)
    height, width = 64, 64 * 32768
    assert count_tiles(config, height, width) == height // 4


def values(graph: ir.Graph) -> Iterator[tuple[str, int]]:
    """Name and bytes of all that the nodes make, by shape inference of onnx."""
    inferred = onnx.shape_inference.infer_shapes(
        proto_of(graph), check_type=True, strict_mode=True, data_prop=True
    ).graph
    shapes = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output)}
    for node in inferred.node:
        for name in node.output:
            kind = shapes[name]
            assert all(size.HasField("dim_value") for size in kind.shape.dim), name
            count = int(np.prod([size.dim_value for size in kind.shape.dim]))
            yield name, count * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize


def test_no_value_of_its_graph_is_larger_than_the_states() -> None:
    config, height, width = lookup("cityscapes-small").model, 1024, 2048
    z = tuple(torch.zeros(shape) for shape in config.state_shapes(1, height, width))
    readout = TiledReadMask(build(config).freeze(), height, width)
    sizes = dict(values(trace(readout, (z,))))
    limit = sum(4 * x.numel() for x in z)
    assert max(sizes.values()) <= limit
    assert max(sizes.values()) > limit / 2, "nor cut finer than need be"


# What is refused


def test_a_model_whose_norms_are_not_folded_is_refused() -> None:
    config, height, width = CASES["three scales"]
    with pytest.raises(ValueError, match="frozen model"):
        TiledReadMask(build(config), height, width)


@pytest.mark.parametrize("tiles", [-1, 0, 13])
def test_a_number_of_tiles_that_cannot_be_is_refused(tiles: int) -> None:
    config, height, width = CASES["three scales"]
    with pytest.raises(ValueError, match=f"{tiles} tiles of 12 rows"):
        TiledReadMask(build(config).freeze(), height, width, tiles)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (48, 84), (0, 80)])
def test_a_size_off_the_stride_is_refused(height: int, width: int) -> None:
    config = CASES["three scales"][0]
    with pytest.raises(ConfigError, match="multiple"):
        TiledReadMask(build(config).freeze(), height, width)
    with pytest.raises(ConfigError, match="multiple"):
        count_tiles(config, height, width)
