"""Published checkpoints: their layouts, wrappers and prefixes, and what is inferred from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import Layout, published_checkpoint, published_shapes
from reference import load_fill, reference_checkpoint, shared_reference
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_mdeq.checkpoints import (
    Checkpoint,
    ImportSettings,
    import_checkpoint,
    infer_architecture,
    open_checkpoint,
    read_labels,
    require_agreement,
    verify,
)
from edge_mdeq.checkpoints.formulas import RawModel
from edge_mdeq.checkpoints.verify import compare, noise, trajectory
from edge_mdeq.config import InputConfig, ModelConfig
from edge_mdeq.errors import ConfigError, ParityError, WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import REGISTRY, lookup
from edge_mdeq.weights import load_weights, save_weights

Tensors = dict[str, Tensor]

CLASSIFIER = ModelConfig(
    task="classification",
    classes=5,
    channels=(8, 16, 16, 24),
    expansion=2,
    head_channels=(3, 4, 5, 6),
    final_channels=20,
)
SEGMENTER = ModelConfig(
    task="segmentation", classes=4, channels=(8, 16, 24), expansion=3, norm_momentum=0.01
)
GIVEN = ImportSettings(downsample_times=2, size=(64, 96))  # what no published row tells of those
LAYOUTS: tuple[Layout, ...] = ("v1", "v2", "torchdeq-imagenet", "torchdeq-cifar")


def tiny(layout: Layout = "v2") -> Tensors:
    """CIFAR TINY; only v2 leaves gain and bias out of f's last norm."""
    return published_checkpoint(
        replace(lookup("cifar-tiny").model, post_norm_affine=layout != "v2"), layout
    )


def same(a: MDEQ, b: MDEQ) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


# Key names


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


# Wrappers, prefixes, file formats: all of them are the same model


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


# What is inferred


def without_memory(name: str, layout: Layout) -> tuple[Checkpoint, ModelConfig]:
    """A checkpoint of a registry row that consists of shapes only."""
    config = lookup(name).model
    if layout != "v2":
        config = replace(config, post_norm_affine=True)
    tensors = {
        key: torch.empty(shape, device="meta")
        for key, shape in published_shapes(config, layout).items()
        if not key.startswith(("fullstage_copy.", "deq."))
    }
    short: Any = layout.split("-")[0]
    return Checkpoint(Path("c.pth"), short, tensors, {}, ()), config


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.published])
def test_every_published_row_is_recognised(name: str, layout: Layout) -> None:
    checkpoint, config = without_memory(name, layout)
    found = infer_architecture(checkpoint)
    assert name in [entry.name for entry in found.entries]
    # Rows of one architecture differ in dropout, which no checkpoint shows.
    assert found.config == replace(config, dropout=found.config.dropout)
    assert found.config.dropout == found.entries[0].model.dropout


def test_cifar_large_and_imagenet_small_differ_in_their_readouts_only_and_are_told_apart() -> None:
    large = infer_architecture(without_memory("cifar-large", "v2")[0])
    small = infer_architecture(without_memory("imagenet-small", "v2")[0])
    assert large.config.channels == small.config.channels
    assert (large.config.downsample_times, small.config.downsample_times) == (0, 2)


def test_the_last_norm_decides_between_rows_that_share_everything_else() -> None:
    found = infer_architecture(without_memory("imagenet-large-reg", "v2")[0])
    assert found.entries[0].name == "imagenet-large-reg"
    assert not found.config.post_norm_affine


def save(tensors: Any, folder: Path) -> Path:
    torch.save(tensors, folder / "c.pth")
    return folder / "c.pth"


def test_an_unpublished_size_needs_to_be_told_the_stem_s_strides(tmp_path: Path) -> None:
    path = save(published_checkpoint(CLASSIFIER, "v2"), tmp_path)
    with pytest.raises(WeightsError, match=r"no published model.*--downsample-times 0, 1 or 2"):
        import_checkpoint(path)
    with pytest.raises(ConfigError, match=r"input size is unknown; give --imgsz"):
        import_checkpoint(path, ImportSettings(downsample_times=0))
    model, card = import_checkpoint(path, ImportSettings(downsample_times=1, size=(32, 48)))
    assert model.config.downsample_times == 1
    assert card.input == InputConfig(32, 48)
    assert card.provenance.name == "c"


def test_strides_that_contradict_the_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--downsample-times 2 contradicts.*cifar-tiny with 0"):
        import_checkpoint(save(tiny(), tmp_path), ImportSettings(downsample_times=2))


def test_another_number_of_groups_is_another_model(tmp_path: Path) -> None:
    config = replace(SEGMENTER, channels=(12, 20), groups=4)
    path = save(published_checkpoint(config, "v2"), tmp_path)
    with pytest.raises(WeightsError, match=r"positive multiple of groups.*--groups"):
        import_checkpoint(path, GIVEN)
    model, _ = import_checkpoint(path, replace(GIVEN, groups=4))
    assert model.config == config
    require_agreement(verify(open_checkpoint(path), model))


def test_the_card_comes_from_the_matched_row(tmp_path: Path) -> None:
    path = save(tiny("v1"), tmp_path)
    _, card = import_checkpoint(path)
    entry = lookup("cifar-tiny")
    assert card.input == entry.input
    assert card.labels == entry.labels
    assert card.provenance.name == "cifar-tiny"
    assert card.provenance.licence == "unknown"
    assert "layout v1" in card.provenance.notes
    assert str(tmp_path) not in repr(card)


def test_everything_on_the_card_can_be_given(tmp_path: Path) -> None:
    labels = tuple("abcdefghij")
    settings = ImportSettings(
        size=(64, 40), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), labels=labels, name="mine",
        licence="MIT",
    )  # fmt: skip
    _, card = import_checkpoint(save(tiny(), tmp_path), settings)
    assert card.input == InputConfig(64, 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert card.labels == labels
    assert (card.provenance.name, card.provenance.licence) == ("mine", "MIT")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ImportSettings(size=(33, 32)), "height 33 is not a multiple of the model's stride 2"),
        (ImportSettings(labels=("a", "b")), "labels has 2 entries, the model has 10 classes"),
        (ImportSettings(std=(0.0, 1.0, 1.0)), "must be positive"),
    ],
)
def test_senseless_settings_are_refused(
    settings: ImportSettings, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(save(tiny(), tmp_path), settings)


def test_labels_are_a_name_per_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("traffic light\n straße \n\n")
    assert read_labels(path) == ("traffic light", "straße")
    path.write_text("a\n\nb\n")
    with pytest.raises(ConfigError, match="one class name per line"):
        read_labels(path)
    with pytest.raises(WeightsError, match="cannot read the labels"):
        read_labels(tmp_path / "none.txt")


# The verification: it must see every weight


@torch.no_grad()
def test_a_change_of_any_tensor_of_the_model_is_seen(tmp_path: Path) -> None:
    config = replace(CLASSIFIER, channels=(8, 16, 8), head_channels=(3, 4, 5), downsample_times=0)
    path = save(published_checkpoint(config, "v2"), tmp_path)
    model, _ = import_checkpoint(path, replace(GIVEN, downsample_times=0))  # small images
    image = noise(config, batch=1)
    raw = RawModel(open_checkpoint(path).tensors, "fullstage", groups=8, downsample_times=0)
    expected = trajectory(raw, image)
    model.double()
    require_agreement(compare(trajectory(model, image), expected))
    generator = torch.Generator().manual_seed(0)
    unseen = []
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        before = tensor.clone()
        tensor += 0.1 * (0.1 + torch.rand(tensor.shape, generator=generator))
        if all(d.ok for d in compare(trajectory(model, image), expected)):
            unseen.append(name)
        tensor.copy_(before)
    assert unseen == []


def test_a_difference_is_an_error_that_names_the_quantity() -> None:
    right = [("injection", torch.ones(3)), ("logits after 4", torch.ones(2))]
    wrong = [("injection", torch.ones(3)), ("logits after 4", torch.tensor([1.0, 1.1]))]
    nan = [("injection", torch.full((3,), torch.nan)), ("logits after 4", torch.ones(1))]
    require_agreement(compare(right, right))
    with pytest.raises(ParityError, match=r"logits after 4 differs by 7.1e-02 \(allowed 1e-05\)"):
        require_agreement(compare(wrong, right))
    with pytest.raises(
        ParityError, match=r"injection differs by nan.*logits after 4 differs by inf"
    ):
        require_agreement(compare(nan, right))


def test_other_strides_or_groups_than_the_checkpoint_s_are_seen(tmp_path: Path) -> None:
    path = save(published_checkpoint(SEGMENTER, "v2"), tmp_path)
    model, _ = import_checkpoint(path, GIVEN)
    other = MDEQ(replace(SEGMENTER, groups=4)).eval()
    other.load_state_dict(model.state_dict())
    raw = RawModel(open_checkpoint(path).tensors, "fullstage", 8, 2)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    u = raw.inject(image)
    z = raw.f(raw.zero_state(u), u)
    with torch.no_grad():
        ours, theirs = (m.double().bind(u)(m.zero_state(u)) for m in (model, other))
    torch.testing.assert_close(list(ours), z)
    assert not torch.allclose(theirs[0], z[0], rtol=1e-2)


# What the published implementations computed with the reference's weights


@pytest.fixture(scope="module", params=["v1", "v2"])
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensor, dict[str, Any]]:
    """The reference's weights as a checkpoint file, its input, and its values."""
    version = request.param
    path = tmp_path_factory.mktemp("reference") / f"{version}.pkl"
    torch.save(reference_checkpoint(version), path)
    values = dict(np.load(shared_reference() / f"tiny_{version}.npz"))
    image: Tensor = load_fill().image(int(values["image_seed"]), (2, 3, *values["hw"]))
    return path, image, values


def distance(ours: Tensor, theirs: Any) -> float:
    expected = torch.as_tensor(theirs).double()
    return float((ours.double() - expected).norm() / expected.norm())


def check_against_reference(
    inject: Any, f: Any, zero: Any, readout: Any, image: Tensor, values: Any
) -> None:
    """Injection, plain iterations, their residuals (over the whole batch) and the logits."""
    u = inject(image)
    assert distance(u, values["injection"]) < 1e-4
    z = zero(u)
    for step in (1, 2, 3, 4):
        fz = f(z, u)
        flat, new = (torch.cat([x.flatten() for x in state]) for state in (z, fz))
        residual = float((new - flat).norm() / new.norm())
        assert residual == pytest.approx(float(values[f"picard_rel_{step}"]), rel=1e-4)
        z = fz
        if step in (1, 4):
            for i, zi in enumerate(z):
                assert distance(zi, values[f"picard{step}_z{i}"]) < 1e-4
    if "picard4_output" in values:  # only the second reference recorded them
        assert distance(readout(z), values["picard4_output"]) < 1e-3


@torch.no_grad()
def test_the_imported_model_computes_what_the_reference_computed(reference: Any) -> None:
    path, image, values = reference
    model, _ = import_checkpoint(path)
    check_against_reference(
        model.inject, lambda z, u: model.bind(u)(z), model.zero_state, model.readout, image, values
    )


@torch.no_grad()
def test_the_formulas_compute_what_the_reference_computed(reference: Any) -> None:
    path, image, values = reference
    checkpoint = open_checkpoint(path)
    raw = RawModel(checkpoint.tensors, checkpoint.stage, groups=8, downsample_times=0)
    check_against_reference(raw.inject, raw.f, raw.zero_state, raw.readout, image.double(), values)


def test_the_formulas_share_nothing_with_the_model() -> None:
    import ast
    import inspect

    from edge_mdeq.checkpoints import formulas

    imported = {
        node.module
        for node in ast.walk(ast.parse(inspect.getsource(formulas)))
        if isinstance(node, ast.ImportFrom)
    }
    assert not [name for name in imported if name and name.startswith("edge_mdeq")]
