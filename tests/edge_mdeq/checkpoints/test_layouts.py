"""Published checkpoints: key names, wrappers, prefixes and file formats all hold the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import Layout, published_checkpoint, published_shapes
from reference import reference_checkpoint
from safetensors.torch import save_file
from tiny_checkpoints import CLASSIFIER, GIVEN, LAYOUTS, SEGMENTER, Tensors, same, tiny
from torch import nn

from edge_mdeq.checkpoints import import_checkpoint, open_checkpoint, require_agreement, verify
from edge_mdeq.config import ModelConfig
from edge_mdeq.registry import lookup
from edge_mdeq.weights import load_weights, save_weights


@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [
        ("imagenet-small", "v1", 512),
        ("cifar-tiny", "v1", 188),
        ("cityscapes-small", "v1", 419),
        ("imagenet-small", "v2", 224),
        ("imagenet-small-reg", "v2", 216),
        ("cifar-tiny", "v2", 94),
        ("cityscapes-small", "v2", 131),
    ],
)
def test_the_generator_makes_as_many_keys_as_the_published_codes(
    name: str, layout: Layout, count: int
) -> None:
    config = lookup(name).model
    if layout == "v1":
        config = replace(config, post_norm_affine=True)
    assert len(published_shapes(config, layout)) == count


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_generator_makes_the_keys_and_shapes_of_a_real_checkpoint(version: Layout) -> None:
    real = {key: tuple(tensor.shape) for key, tensor in reference_checkpoint(version).items()}
    config = replace(lookup("cifar-tiny").model, post_norm_affine=version == "v1")
    assert published_shapes(config, version) == real


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "config", [CLASSIFIER, SEGMENTER, replace(SEGMENTER, channels=(16, 8), downsample_times=1)]
)
def test_every_layout_computes_what_its_bare_tensors_say(
    layout: Layout, config: ModelConfig, tmp_path: Path
) -> None:
    torch.save(published_checkpoint(config, layout), tmp_path / "c.pth")
    settings = replace(GIVEN, downsample_times=config.downsample_times)
    model, card = import_checkpoint(tmp_path / "c.pth", settings)
    assert model.config == card.model == config
    # In float64 on both sides; what TorchDEQ norms elsewhere than we do is rounded to float32 once.
    limit = 1e-6 if layout.startswith("torchdeq") else 1e-11
    for difference in verify(open_checkpoint(tmp_path / "c.pth"), model):
        assert difference.relative < limit, difference.what


def test_a_single_scale_has_a_post_fuse_that_nothing_calls(tmp_path: Path) -> None:
    config = replace(SEGMENTER, channels=(16,))
    torch.save(published_checkpoint(config, "v2"), tmp_path / "c.pth")
    model, _ = import_checkpoint(tmp_path / "c.pth", GIVEN)
    require_agreement(verify(open_checkpoint(tmp_path / "c.pth"), model))


def test_directions_and_gains_are_taken_over_bit_by_bit(tmp_path: Path) -> None:
    torch.save(tiny("v1"), tmp_path / "c.pth")
    model, _ = import_checkpoint(tmp_path / "c.pth")
    theirs = tiny("v1")
    for ours, published in (
        ("cell.blocks.1.conv2", "fullstage.branches.1.blocks.0.conv2"),
        ("cell.post.0.conv", "fullstage.post_fuse_layers.0.conv"),
    ):
        state = model.state_dict()
        assert torch.equal(state[f"{ours}.weight"], theirs[f"{published}.weight_v"])
        assert torch.equal(state[f"{ours}.gain"], theirs[f"{published}.weight_g"])


def test_a_plain_kernel_stays_what_it_is_even_where_a_row_of_it_is_zero(tmp_path: Path) -> None:
    tensors = tiny("torchdeq-imagenet")
    kernel = tensors["full_stage.post_fuse_layers.1.conv.weight"]
    kernel[3] = 0
    torch.save(tensors, tmp_path / "c.pth")
    model, _ = import_checkpoint(tmp_path / "c.pth")
    torch.testing.assert_close(model.cell.post[1].conv.kernel(), kernel)  # type: ignore[operator,union-attr]
    require_agreement(verify(open_checkpoint(tmp_path / "c.pth"), model))


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def training_state(tensors: Any) -> dict[str, Any]:
    """As training scripts write it: NumPy numbers and an optimizer beside the weights."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 12,
        "model": "mdeq",
        "state_dict": tensors,
        "perf": np.float64(93.5),
        "best_mIoU": np.float32(0.75),
        "iou": np.linspace(0, 1, 3),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": np.int64(3), "_last_lr": [0.1]},
    }


def in_new_spelling(tensors: Tensors) -> Tensors:
    return {
        key.replace(".weight_g", ".parametrizations.weight.original0").replace(
            ".weight_v", ".parametrizations.weight.original1"
        ): tensor
        for key, tensor in tensors.items()
    }


WRAPPED: dict[str, Callable[[Tensors], Any]] = {
    "plain": lambda t: t,
    "state_dict": lambda t: {"state_dict": t},
    "training state": training_state,
    "nested state_dict": lambda t: {"model": {"state_dict": t}, "epoch": 1},
    "module.": lambda t: prefixed("module.", t),
    "model.": lambda t: prefixed("model.", t),
    "module.model. and loss": lambda t: {
        **prefixed("module.model.", t),
        "module.loss.criterion.weight": torch.ones(19),
    },
    "model. and loss": lambda t: {
        **prefixed("model.", t),
        "loss.criterion.weight": torch.ones(19),
    },
    "training state of the wrapper": lambda t: training_state(prefixed("module.model.", t)),
    "parametrizations": in_new_spelling,
    "parameters": lambda t: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()
    },
    "float64": lambda t: {k: v.double() if v.is_floating_point() else v for k, v in t.items()},
    "uncounted batches": lambda t: {k: v for k, v in t.items() if "num_batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapper_holds_the_same_model(wrapping: str, layout: Layout, tmp_path: Path) -> None:
    torch.save(tiny(layout), tmp_path / "plain.pth")
    torch.save(WRAPPED[wrapping](tiny(layout)), tmp_path / "c.pth.tar")
    expected, _ = import_checkpoint(tmp_path / "plain.pth")
    model, _ = import_checkpoint(tmp_path / "c.pth.tar")
    if wrapping == "uncounted batches":
        for buffer in ("inject.stem.1", "inject.stem.4"):
            assert model.get_submodule(buffer).num_batches_tracked == 0
        for module in expected.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked.zero_()  # type: ignore[union-attr]
    assert same(model, expected)
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["c.pkl", "c.pth", "c.pth.tar", "c.pt", "c", "c.safetensors"])
def test_every_ending_is_read(name: str, tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "plain.pth")
    if name.endswith(".safetensors"):
        save_file(tiny(), tmp_path / name)
    else:
        torch.save(tiny(), tmp_path / name)
    assert same(import_checkpoint(tmp_path / name)[0], import_checkpoint(tmp_path / "plain.pth")[0])


def test_the_file_format_of_old_torch_is_read(tmp_path: Path) -> None:
    torch.save(tiny("v1"), tmp_path / "new.pkl")
    torch.save(training_state(tiny("v1")), tmp_path / "c.pkl", _use_new_zipfile_serialization=False)
    assert same(
        import_checkpoint(tmp_path / "c.pkl")[0], import_checkpoint(tmp_path / "new.pkl")[0]
    )


def test_the_copies_of_v1_are_not_read(tmp_path: Path) -> None:
    torch.save(tiny("v1"), tmp_path / "c.pth")
    spoilt = {
        key: torch.full_like(tensor, 7) if key.startswith(("fullstage_copy.", "deq.")) else tensor
        for key, tensor in tiny("v1").items()
    }
    torch.save(spoilt, tmp_path / "spoilt.pth")
    model, _ = import_checkpoint(tmp_path / "spoilt.pth")
    assert same(model, import_checkpoint(tmp_path / "c.pth")[0])
    assert len(open_checkpoint(tmp_path / "c.pth").dropped) == 188 - 98


def test_our_own_format_round_trips(tmp_path: Path) -> None:
    torch.save(tiny("v1"), tmp_path / "c.pth")
    model, card = import_checkpoint(tmp_path / "c.pth")
    save_weights(model, card, tmp_path / "w.safetensors")
    again, again_card = load_weights(tmp_path / "w.safetensors")
    assert same(again, model)
    assert again_card == card
