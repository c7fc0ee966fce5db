"""The model against MDEQ_SPEC sections 1 and 5, a plain re-implementation, and reference values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import CIFAR_TINY, load_reference
from torch import Tensor, nn

from edge_mdeq.config import ModelConfig
from edge_mdeq.model import MDEQ, State, WeightNormConv2d

Build = Callable[..., MDEQ]

CIFAR_LARGE = replace(
    CIFAR_TINY,
    channels=(32, 64, 128, 256),
    head_channels=(14, 28, 56, 112),
    final_channels=1680,
)
IMAGENET_SMALL = ModelConfig(
    task="classification",
    classes=1000,
    channels=(32, 64, 128, 256),
    head_channels=(24, 48, 96, 192),
    final_channels=2048,
)
IMAGENET_XL = replace(
    IMAGENET_SMALL,
    channels=(88, 176, 352, 704),
    expansion=6,
    head_channels=(32, 64, 128, 256),
)
CITYSCAPES_SMALL = ModelConfig(
    task="segmentation", classes=19, channels=(32, 64, 128, 256), norm_momentum=0.01
)

SEGMENTER = ModelConfig(task="segmentation", classes=3, channels=(16, 24), expansion=2)
CLASSIFIER = ModelConfig(
    task="classification",
    classes=5,
    channels=(16, 24),
    expansion=2,
    head_channels=(4, 6),
    final_channels=20,
)
VARIANTS = {  # small, and between them every branch of the architecture
    "seg-1-scale": replace(SEGMENTER, channels=(16,)),
    "seg-2-scales": SEGMENTER,
    "seg-3-scales-stride-2-stem": replace(SEGMENTER, channels=(16, 16, 24), downsample_times=1),
    "seg-4-scales": replace(SEGMENTER, channels=(16, 24, 32, 48), expansion=1),
    "seg-plain-post-norm": replace(SEGMENTER, post_norm_affine=False),
    "seg-4-groups": replace(SEGMENTER, channels=(12, 20), groups=4),
    "seg-dropout": replace(SEGMENTER, dropout=0.3),
    "cls-1-scale": replace(CLASSIFIER, channels=(16,), head_channels=(4,)),
    "cls-2-scales": CLASSIFIER,
    "cls-2-scales-full-resolution": replace(CLASSIFIER, downsample_times=0),
    "cls-4-scales": replace(CLASSIFIER, channels=(16, 16, 24, 32), head_channels=(4, 4, 6, 8)),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    value: ModelConfig = request.param
    return value


def images(config: ModelConfig, batch: int = 2, seed: int = 1) -> Tensor:
    """Normalised images (B, 3, H, W), two strides high and three wide."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 2 * config.stride, 3 * config.stride, generator=generator)


def random_state(shapes: list[tuple[int, int, int, int]], seed: int = 2) -> State:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def run(model: MDEQ, image: Tensor, steps: int = 3) -> tuple[State, Tensor]:
    """States after ``steps`` plain iterations from zero, and what is read out there."""
    u = model.inject(image)
    f, z = model.bind(u), model.zero_state(u)
    for _ in range(steps):
        z = f(z)
    return z, model.readout(z)


# Sizes and shapes


@pytest.mark.parametrize(
    ("config", "total", "in_f"),
    [
        (CIFAR_TINY, 158_890, 111_696),
        (replace(CIFAR_TINY, post_norm_affine=True), 158_986, None),
        (CIFAR_LARGE, 11_097_438, 8_715_232),
        (IMAGENET_SMALL, 16_808_936, 8_716_192),
        (IMAGENET_XL, 90_463_280, 77_699_952),
        (CITYSCAPES_SMALL, 8_968_467, 8_716_192),
        (
            replace(CITYSCAPES_SMALL, channels=(80, 160, 320, 640)),
            55_955_859,
            54_422_800,
        ),
        (
            replace(CITYSCAPES_SMALL, channels=(88, 176, 352, 704), expansion=6),
            79_551_755,
            77_699_952,
        ),
    ],
    ids=[
        "CIFAR TINY v2", "CIFAR TINY v1", "CIFAR LARGE", "ImageNet SMALL", "ImageNet XL",
        "Cityscapes SMALL", "Cityscapes LARGE", "Cityscapes XL",
    ],
)  # fmt: skip
def test_published_configs_have_the_published_parameter_counts(
    config: ModelConfig, total: int, in_f: int | None
) -> None:
    with torch.device("meta"):  # shapes without memory
        model = MDEQ(config)
    assert sum(p.numel() for p in model.parameters()) == total
    if in_f is not None:
        assert sum(p.numel() for p in model.cell.parameters()) == in_f


def test_shapes_are_those_that_the_config_promises(config: ModelConfig, build: Build) -> None:
    model, image = build(config), images(config)
    promised = config.state_shapes(*image.shape[:1], *image.shape[2:])
    with torch.no_grad():
        u = model.inject(image)
        z, answer = run(model, image)
    assert tuple(u.shape) == promised[0]
    assert [tuple(zi.shape) for zi in model.zero_state(u)] == promised
    assert [tuple(zi.shape) for zi in z] == promised
    place = () if config.task == "classification" else promised[0][2:]
    assert tuple(answer.shape) == (2, config.classes, *place)


def test_nothing_is_nan(config: ModelConfig, build: Build) -> None:
    with torch.no_grad():
        z, answer = run(build(config), images(config))
    assert all(bool(x.isfinite().all()) for x in (*z, answer))


def test_a_fresh_model_is_initialised_as_published() -> None:
    """N(0, 0.01) for plain convolutions; weight-normed ones keep torch's, with gain = norm."""
    torch.manual_seed(0)
    model = MDEQ(CLASSIFIER)
    plain = model.readout.down[0][0]  # type: ignore[union-attr,index]
    assert plain.weight.std().item() == pytest.approx(0.01, rel=0.1)
    normed = model.cell.blocks[0].conv1
    torch.testing.assert_close(normed.kernel(), normed.weight)
    bound = (16 * 9) ** -0.5  # torch's default: uniform within 1/sqrt(fan in)
    assert normed.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_every_parameter_gets_a_gradient(config: ModelConfig, build: Build) -> None:
    model = build(config)
    _, answer = run(model, images(config))
    answer.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_images_of_a_batch_do_not_influence_each_other(config: ModelConfig, build: Build) -> None:
    model, image = build(config), images(config)
    with torch.no_grad():
        _, together = run(model, image)
        _, alone = run(model, image[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


# f against the formulas of MDEQ_SPEC 1.2, written down once more without modules


def plain_f(
    p: Mapping[str, Tensor],
    z: State,
    u: Tensor,
    groups: int,
    masks: list[Tensor] | None = None,
) -> State:
    """One evaluation of f from the cell's bare tensors ``p``."""
    n = len(z)

    def normed_kernel(name: str) -> Tensor:
        v = p[f"{name}.weight"]
        norm = (v * v).sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return p[f"{name}.gain"] * v / norm

    def group_norm(x: Tensor, name: str, g: int) -> Tensor:
        return F.group_norm(x, g, p.get(f"{name}.weight"), p.get(f"{name}.bias"), eps=1e-5)

    r = []
    for i in range(n):
        block = f"blocks.{i}"
        a = F.conv2d(z[i], normed_kernel(f"{block}.conv1"), padding=1)
        a = F.relu(group_norm(a, f"{block}.norm1", groups))
        b = F.conv2d(a, normed_kernel(f"{block}.conv2"), padding=1)
        if masks is not None:
            b = masks[i] * b
        if i == 0:
            b = b + u
        b = group_norm(b, f"{block}.norm2", groups)
        r.append(group_norm(F.relu(b + z[i]), f"{block}.norm3", groups))
    if n == 1:
        return tuple(r)
    result = []
    for i in range(n):
        s = torch.zeros_like(r[i])
        for j in range(n):
            t, path = r[j], f"fuse.{i}.{j}"
            if j > i:  # coarse to fine
                t = group_norm(F.conv2d(t, p[f"{path}.0.weight"]), f"{path}.1", groups)
                factor = 2 ** (j - i)
                t = t.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
            for k in range(i - j):  # fine to coarse
                if k > 0:
                    t = F.relu(t)
                t = F.conv2d(t, p[f"{path}.{3 * k}.weight"], stride=2, padding=1)
                t = group_norm(t, f"{path}.{3 * k + 1}", groups)
            s = s + t
        s = F.conv2d(F.relu(s), normed_kernel(f"post.{i}.conv"))
        result.append(group_norm(s, f"post.{i}.norm", groups // 2))
    return tuple(result)


def test_f_is_what_the_formulas_say(config: ModelConfig, build: Build) -> None:
    cell = build(config).cell.double()
    shapes = config.state_shapes(2, 2 * config.stride, 3 * config.stride)
    z = tuple(x.double() for x in random_state(shapes))
    u = random_state(shapes[:1], seed=3)[0].double()
    with torch.no_grad():
        expected = plain_f(dict(cell.named_parameters()), z, u, config.groups)
        torch.testing.assert_close(cell(z, u), expected, rtol=1e-9, atol=1e-9)


def test_dropout_scales_the_second_convolution_before_the_injection(build: Build) -> None:
    cell = build(SEGMENTER).cell.double()
    shapes = SEGMENTER.state_shapes(2, 16, 16)
    z = tuple(x.double() for x in random_state(shapes))
    u = random_state(shapes[:1], seed=3)[0].double()
    masks = [(torch.rand(x.shape[:2]) > 0.5).double()[..., None, None] * 2 for x in z]
    with torch.no_grad():
        expected = plain_f(dict(cell.named_parameters()), z, u, 8, masks)
        torch.testing.assert_close(cell(z, u, masks=masks), expected, rtol=1e-9, atol=1e-9)


def test_f_ends_in_a_group_norm(build: Build) -> None:
    """Without gain and bias, every group of the result has mean 0 and variance 1."""
    config = replace(SEGMENTER, post_norm_affine=False)
    cell = build(config).cell
    shapes = config.state_shapes(1, 16, 24)
    with torch.no_grad():
        fz = cell(random_state(shapes), random_state(shapes[:1], seed=3)[0])
    for x in fz:
        grouped = x.view(config.groups // 2, -1)
        torch.testing.assert_close(grouped.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(grouped.var(dim=1), torch.ones(4), atol=3e-2, rtol=0)


# Reference values: what the published implementations computed


@pytest.fixture(scope="module", params=["v1", "v2"])
def reference(request: pytest.FixtureRequest) -> tuple[MDEQ, Tensor, dict[str, Any]]:
    """CIFAR TINY with the reference's weights, its input, and its values."""
    return load_reference(request.param)


def relative_error(ours: Tensor, theirs: Any) -> float:
    expected = torch.as_tensor(theirs)
    return float((ours - expected).norm() / expected.norm())


@torch.no_grad()
def test_the_injection_is_the_reference_s(reference: Any) -> None:
    model, image, values = reference
    assert relative_error(model.inject(image), values["injection"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 4])
def test_states_of_the_plain_iteration_are_the_reference_s(reference: Any, steps: int) -> None:
    model, image, values = reference
    z, _ = run(model, image, steps)
    for i, zi in enumerate(z):
        assert relative_error(zi, values[f"picard{steps}_z{i}"]) < 1e-4


@torch.no_grad()
def test_residuals_of_the_plain_iteration_are_the_reference_s(reference: Any) -> None:
    """The reference takes the norms over the whole batch."""
    model, image, values = reference
    u = model.inject(image)
    f, z = model.bind(u), model.zero_state(u)
    for step in (1, 2, 3, 4):
        fz = f(z)
        flat, new = (torch.cat([x.flatten() for x in state]) for state in (z, fz))
        residual = float((new - flat).norm() / new.norm())
        assert residual == pytest.approx(float(values[f"picard_rel_{step}"]), rel=1e-4)
        z = fz


@torch.no_grad()
def test_logits_after_four_iterations_are_the_reference_s(reference: Any) -> None:
    model, image, values = reference
    if "picard4_output" not in values:
        pytest.skip("this reference did not record them")
    assert relative_error(run(model, image, 4)[1], values["picard4_output"]) < 1e-3


# freeze()


def test_freezing_changes_no_result(config: ModelConfig, build: Build) -> None:
    model, image = build(config), images(config)
    with torch.no_grad():
        z, answer = run(model, image)
        frozen_z, frozen_answer = run(model.freeze(), image)
    torch.testing.assert_close(frozen_z, z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(frozen_answer, answer, rtol=1e-3, atol=1e-3)


def test_a_frozen_model_holds_no_batch_norm_and_no_weight_norm(
    config: ModelConfig, build: Build
) -> None:
    modules = list(build(config).freeze().modules())
    assert not [m for m in modules if isinstance(m, nn.BatchNorm2d | WeightNormConv2d)]


def test_a_frozen_model_is_for_inference(config: ModelConfig, build: Build) -> None:
    frozen = build(config).train().freeze()
    assert not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_freezing_leaves_the_original_untouched(config: ModelConfig, build: Build) -> None:
    model = build(config).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.freeze()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# Variational dropout


@pytest.fixture
def dropping(build: Build) -> tuple[MDEQ, Tensor, State]:
    model = build(replace(SEGMENTER, dropout=0.5))
    u = model.inject(images(SEGMENTER)).detach()
    return model, u, random_state(SEGMENTER.state_shapes(2, *images(SEGMENTER).shape[2:]))


@torch.no_grad()
def test_dropout_is_constant_within_a_solve(dropping: tuple[MDEQ, Tensor, State]) -> None:
    model, u, z = dropping
    f = model.train().bind(u)
    assert all(torch.equal(a, b) for a, b in zip(f(z), f(z), strict=True))


@torch.no_grad()
def test_dropout_differs_between_solves(dropping: tuple[MDEQ, Tensor, State]) -> None:
    model, u, z = dropping
    torch.manual_seed(0)
    first, second = model.train().bind(u), model.bind(u)
    assert not torch.equal(first(z)[0], second(z)[0])


@torch.no_grad()
def test_dropout_is_absent_in_eval_mode(dropping: tuple[MDEQ, Tensor, State], build: Build) -> None:
    model, u, z = dropping
    without = build(SEGMENTER)  # the same weights: the fixture is seeded
    assert all(torch.equal(a, b) for a, b in zip(model.bind(u)(z), without.bind(u)(z), strict=True))


def test_dropout_masks_drop_whole_channels_and_keep_the_mean(
    dropping: tuple[MDEQ, Tensor, State],
) -> None:
    model, _, _ = dropping
    torch.manual_seed(0)
    mask = model.train().cell.masks((torch.zeros(64, 16, 4, 4),))[0]
    assert mask is not None
    assert mask.shape == (64, 16, 1, 1)
    assert sorted(mask.unique().tolist()) == [0.0, 2.0]
    assert mask.mean().item() == pytest.approx(1.0, abs=0.1)
