"""The model config: which ones make sense, what they imply, and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance, read_card, write_card
from edge_mdeq.errors import ConfigError, EdgeMdeqError, WeightsError

SEGMENTER = ModelConfig(task="segmentation", classes=3, channels=(16, 32))
CLASSIFIER = ModelConfig(
    task="classification",
    classes=10,
    channels=(24, 24),
    head_channels=(8, 16),
    final_channels=200,
    downsample_times=0,
)
CARD = ModelCard(
    model=SEGMENTER,
    input=InputConfig(height=64, width=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    labels=("sky", "road", "Straße"),
    palette=((0, 0, 0), (255, 255, 255), (1, 2, 3)),
    provenance=Provenance(name="test", licence="CC0", data="none", command="x", notes="y"),
    metrics={"miou": 0.5},
)


@pytest.fixture
def card_json(tmp_path: Path) -> dict[str, Any]:
    write_card(CARD, tmp_path / "card.json")
    value: dict[str, Any] = json.loads((tmp_path / "card.json").read_text())
    return value


def read_json(value: object, folder: Path) -> ModelCard:
    path = folder / "changed.json"
    path.write_text(json.dumps(value))
    return read_card(path)


# Sizes


@pytest.mark.parametrize(
    ("downsample_times", "scales", "stride"),
    [(2, 4, 32), (0, 4, 8), (0, 2, 2), (1, 2, 4), (2, 1, 4), (0, 1, 1)],
)
def test_stride_is_two_to_the_downsamplings_of_stem_and_scales(
    downsample_times: int, scales: int, stride: int
) -> None:
    config = replace(SEGMENTER, channels=(16,) * scales, downsample_times=downsample_times)
    assert config.stride == stride


@pytest.mark.parametrize("size", [224, 256])
def test_sizes_that_the_published_imagenet_models_take_are_accepted(size: int) -> None:
    replace(SEGMENTER, channels=(32, 64, 128, 256)).check_size(size, size)


@pytest.mark.parametrize("size", [240, 225, 200, 0, -32])
def test_sizes_that_are_not_positive_multiples_of_the_stride_are_refused(size: int) -> None:
    config = replace(SEGMENTER, channels=(32, 64, 128, 256))
    with pytest.raises(ConfigError, match=f"height {size} is not a multiple .* stride 32"):
        config.check_size(size, 224)
    with pytest.raises(ConfigError, match=f"width {size} is not a multiple .* stride 32"):
        config.check_size(224, size)


def test_a_refused_size_comes_with_its_two_neighbours() -> None:
    with pytest.raises(ConfigError, match="nearest sizes are 224 and 256"):
        replace(SEGMENTER, channels=(32, 64, 128, 256)).check_size(240, 224)


@pytest.mark.parametrize(
    ("channels", "downsample_times", "height", "width", "bytes_per_scale"),
    [  # MDEQ_SPEC section 5
        ((24, 24), 0, 32, 32, [98304, 24576]),
        ((32, 64, 128, 256), 0, 32, 32, [131072, 65536, 32768, 16384]),
        ((32, 64, 128, 256), 2, 224, 224, [401408, 200704, 100352, 50176]),
        ((88, 176, 352, 704), 2, 224, 224, [1103872, 551936, 275968, 137984]),
        ((32, 64, 128, 256), 2, 512, 1024, [4194304, 2097152, 1048576, 524288]),
    ],
)
def test_states_of_the_published_models_have_the_published_sizes(
    channels: tuple[int, ...],
    downsample_times: int,
    height: int,
    width: int,
    bytes_per_scale: list[int],
) -> None:
    config = replace(SEGMENTER, channels=channels, downsample_times=downsample_times)
    shapes = config.state_shapes(1, height, width)
    assert [4 * b * c * h * w for b, c, h, w in shapes] == bytes_per_scale


def test_state_shapes_refuse_a_size_the_model_cannot_take() -> None:
    with pytest.raises(ConfigError, match="stride 8"):
        SEGMENTER.state_shapes(1, 60, 64)


@pytest.mark.parametrize(
    ("downsample_times", "scales", "present"),
    [(0, 1, False), (0, 2, False), (0, 3, True), (1, 2, True), (2, 1, True)],
)
def test_only_small_models_without_downsampling_lack_the_injection_transform(
    downsample_times: int, scales: int, present: bool
) -> None:
    config = replace(SEGMENTER, channels=(16,) * scales, downsample_times=downsample_times)
    assert config.has_injection_transform is present


# Senseless configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection"}, "unknown task 'detection'"),
        ({"classes": 1}, "classes is 1, need at least 2"),
        ({"classes": 256}, "classes is 256; masks are uint8 and 255 means 'ignored'"),
        ({"channels": ()}, "channels is empty"),
        ({"channels": (16, 20)}, r"channels\[1\] is 20, must be a positive multiple of groups"),
        ({"channels": (0, 16)}, r"channels\[0\] is 0"),
        ({"channels": (-8, 16)}, r"channels\[0\] is -8"),
        ({"groups": 1}, "groups is 1, must be even"),
        ({"groups": 0}, "groups is 0, must be even"),
        ({"expansion": 0}, "expansion is 0"),
        ({"downsample_times": 3}, "downsample_times is 3, must be 0, 1 or 2"),
        ({"downsample_times": -1}, "downsample_times is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"norm_momentum": 0.0}, "norm_momentum is 0.0"),
    ],
)
def test_a_senseless_model_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model config: {message}"):
        replace(SEGMENTER, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_channels": (8,)}, r"head_channels is \[8\], .* one positive entry per scale \(2\)"),
        ({"head_channels": (8, 0)}, r"head_channels is \[8, 0\]"),
        ({"final_channels": 0}, "final_channels must be positive"),
    ],
)
def test_a_classifier_needs_a_head(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CLASSIFIER, **changes)


def test_a_classifier_may_have_more_classes_than_a_mask_can_hold() -> None:
    assert replace(CLASSIFIER, classes=1000).classes == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "input size 0x96 is not positive"),
        ({"width": -4}, "input size 64x-4 is not positive"),
        ({"std": (0.2, 0.0, 0.2)}, "std .* must be positive"),
    ],
)
def test_a_senseless_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CARD.input, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b")}, "labels has 2 entries, the model has 3 classes"),
        ({"palette": ((0, 0, 0),)}, "palette has 1 entries, the model has 3 classes"),
        ({"input": InputConfig(height=60, width=96)}, "height 60 is not a multiple"),
    ],
)
def test_a_card_that_does_not_fit_its_model_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CARD, **changes)


def test_labels_and_palette_may_be_left_out() -> None:
    assert replace(CARD, labels=(), palette=()).labels == ()


# JSON


@pytest.mark.parametrize("card", [CARD, ModelCard(CLASSIFIER, InputConfig(32, 32))])
def test_a_card_survives_its_json(card: ModelCard, tmp_path: Path) -> None:
    write_card(card, tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == card


def test_the_same_card_gives_the_same_bytes(tmp_path: Path) -> None:
    write_card(CARD, tmp_path / "a.json")
    write_card(read_card(tmp_path / "a.json"), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_fields_with_defaults_may_be_absent(card_json: dict[str, Any], tmp_path: Path) -> None:
    for name in ("labels", "palette", "provenance", "metrics"):
        del card_json[name]
    assert read_json(card_json, tmp_path) == ModelCard(CARD.model, CARD.input)


@pytest.mark.parametrize(
    ("place", "key", "path"),
    [
        ((), "modle", r"\$\.modle"),
        (("model",), "chanels", r"\$\.model\.chanels"),
        (("input",), "size", r"\$\.input\.size"),
        (("provenance",), "license", r"\$\.provenance\.license"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(
    card_json: dict[str, Any], tmp_path: Path, place: tuple[str, ...], key: str, path: str
) -> None:
    target = card_json
    for name in place:
        target = target[name]
    target[key] = 1
    with pytest.raises(ConfigError, match=f"changed.json: unknown field `{path}`; known: "):
        read_json(card_json, tmp_path)


def test_a_wrong_type_is_refused_with_its_path(card_json: dict[str, Any], tmp_path: Path) -> None:
    card_json["model"]["channels"][1] = "32"
    with pytest.raises(ConfigError, match=r"Expected `int`, got `str` - at `\$\.model\.channels"):
        read_json(card_json, tmp_path)


def test_a_missing_field_is_named(card_json: dict[str, Any], tmp_path: Path) -> None:
    del card_json["model"]["classes"]
    with pytest.raises(ConfigError, match=r"missing required field `classes` - at `\$\.model`"):
        read_json(card_json, tmp_path)


def test_a_senseless_value_is_refused_with_its_path(
    card_json: dict[str, Any], tmp_path: Path
) -> None:
    card_json["model"]["groups"] = 7
    with pytest.raises(ConfigError, match=r"groups is 7, must be even - at `\$\.model`"):
        read_json(card_json, tmp_path)


def test_a_newer_version_is_refused_even_where_it_has_new_fields(
    card_json: dict[str, Any], tmp_path: Path
) -> None:
    card_json |= {"version": 2, "new_field": 1}
    with pytest.raises(ConfigError, match=r"version 2 is newer than .*; upgrade edge-mdeq"):
        read_json(card_json, tmp_path)


def test_the_json_of_something_else_is_refused(card_json: dict[str, Any], tmp_path: Path) -> None:
    card_json["format"] = "other"
    with pytest.raises(ConfigError, match="format is 'other', expected 'edge-mdeq-model'"):
        read_json(card_json, tmp_path)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "cut off", "not UTF-8", "nested without end"],
)
def test_what_is_not_json_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"card\.json: not valid JSON"):
        read_card(tmp_path / "card.json")


def test_a_missing_card_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.json: No such file"):
        read_card(tmp_path / "absent.json")


def test_one_except_clause_catches_every_error_of_ours() -> None:
    with pytest.raises(EdgeMdeqError):
        replace(SEGMENTER, classes=0)
