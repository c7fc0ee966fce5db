"""What is inferred from a checkpoint, and what has to be told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Layout, published_checkpoint, published_shapes
from tiny_checkpoints import CLASSIFIER, GIVEN, LAYOUTS, SEGMENTER, save, tiny

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
from edge_mdeq.config import InputConfig, ModelConfig
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.registry import REGISTRY, lookup


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
