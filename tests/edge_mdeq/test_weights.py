"""Weights on disk: what is written is read back, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_mdeq.config import InputConfig, ModelCard, ModelConfig
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.weights import load_weights, resolve_weights, save_weights

CONFIG = ModelConfig(task="segmentation", classes=3, channels=(8, 16), expansion=1)
CARD = ModelCard(CONFIG, InputConfig(32, 32), labels=("a", "b", "c"))
NAMES = ["model.json", "model.safetensors"]


@pytest.fixture
def model(build: Callable[..., MDEQ]) -> MDEQ:
    return build(CONFIG)


@pytest.fixture
def saved(model: MDEQ, tmp_path: Path) -> Path:
    """The path of saved weights, in a folder of their own."""
    path = tmp_path / "weights" / "model.safetensors"
    save_weights(model, CARD, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def change_config(saved: Path, **changes: object) -> None:
    card = json.loads(saved.with_suffix(".json").read_text())
    card["model"] |= changes
    saved.with_suffix(".json").write_text(json.dumps(card))


# Round trip


def test_weights_and_card_survive(saved: Path, model: MDEQ) -> None:
    loaded, card = load_weights(saved)
    assert card == CARD
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_loaded_model_is_in_eval_mode_and_trainable(saved: Path) -> None:
    loaded, _ = load_weights(saved)
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())


def test_the_folder_names_the_only_weights_in_it(saved: Path) -> None:
    assert resolve_weights(saved.parent) == (saved, saved.with_suffix(".json"))


def test_saving_writes_the_pair_and_nothing_else(saved: Path) -> None:
    assert names(saved.parent) == NAMES


def test_the_written_config_is_that_of_the_model(model: MDEQ, tmp_path: Path) -> None:
    """Even where the card says otherwise: the file must load."""
    other = ModelCard(ModelConfig(task="segmentation", classes=3, channels=(8,)), CARD.input)
    save_weights(model, other, tmp_path / "model.safetensors")
    _, card = load_weights(tmp_path / "model.safetensors")
    assert card.model == CONFIG


def test_saving_again_replaces(saved: Path, build: Callable[..., MDEQ]) -> None:
    other = build(CONFIG, seed=1)
    save_weights(other, CARD, saved)
    loaded, _ = load_weights(saved)
    assert torch.equal(loaded.cell.blocks[0].conv1.weight, other.cell.blocks[0].conv1.weight)


# What cannot be loaded


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors does not exist"):
        load_weights(tmp_path / "model.safetensors")


def test_a_card_that_its_writer_did_not_come_to_is_in_the_weights(saved: Path, model: MDEQ) -> None:
    """As after kill -9 between the two files: over none, and over another pair."""
    saved.with_suffix(".json").unlink()
    assert load_weights(saved)[1] == CARD
    save_weights(model, CARD, saved)
    before = saved.with_suffix(".json").read_bytes()
    save_weights(model, replace(CARD, labels=("x", "y", "z")), saved)
    saved.with_suffix(".json").write_bytes(before)
    assert load_weights(saved)[1].labels == ("x", "y", "z")


def test_a_card_that_was_edited_counts(saved: Path) -> None:
    card = json.loads(saved.with_suffix(".json").read_text()) | {"labels": ["x", "y", "z"]}
    saved.with_suffix(".json").write_text(json.dumps(card))
    assert load_weights(saved)[1].labels == ("x", "y", "z")


def test_a_config_that_no_machine_holds_costs_nothing(saved: Path) -> None:
    change_config(saved, channels=[2**16, 2**16], expansion=2**10)
    with pytest.raises(WeightsError, match="config says"):
        load_weights(saved)
    change_config(saved, channels=[2**40, 2**40])
    with pytest.raises(ConfigError, match="no machine holds it"):
        load_weights(saved)


def test_missing_config(saved: Path) -> None:
    save_file(load_file(saved), saved)
    saved.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"cannot read the model config .*model\.json"):
        load_weights(saved)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pth.tar", ".pt"])
def test_pickled_checkpoints_are_refused_by_their_name(saved: Path, suffix: str) -> None:
    path = saved.rename(saved.with_suffix(suffix))
    with pytest.raises(WeightsError, match="never loaded as they are"):
        load_weights(path)


def test_a_pickle_in_disguise_is_not_executed(saved: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (saved.with_name("executed"),)  # type: ignore[return-value]

    torch.save({"weights": Trap()}, saved)
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(saved)
    assert names(saved.parent) == NAMES


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="not a readable safetensors file, or is truncated"):
        load_weights(saved)


def test_a_foreign_file_is_refused(saved: Path) -> None:
    saved.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(saved)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"exactly one .safetensors file, found: none"):
        load_weights(tmp_path)


def test_a_folder_with_several_weights_lists_them(saved: Path) -> None:
    saved.with_name("other.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"found: model\.safetensors, other\.safetensors"):
        load_weights(saved.parent)


def test_a_config_of_other_widths_lists_the_shapes(saved: Path) -> None:
    change_config(saved, channels=[8, 24])
    with pytest.raises(WeightsError, match="does not match its config") as caught:
        load_weights(saved)
    assert "cell.blocks.1.conv1.weight is (16, 16, 3, 3), config says (24, 24, 3, 3)" in str(
        caught.value
    )


def test_a_config_of_another_architecture_lists_missing_and_unexpected_keys(saved: Path) -> None:
    change_config(saved, post_norm_affine=False)
    with pytest.raises(WeightsError, match=r"unexpected cell\.post\.0\.norm\.bias"):
        load_weights(saved)
    change_config(saved, post_norm_affine=True, channels=[8, 16, 16])
    with pytest.raises(WeightsError, match=r"missing cell\.blocks\.2"):
        load_weights(saved)


def test_only_the_first_culprits_are_listed(saved: Path) -> None:
    change_config(saved, channels=[8, 24])
    with pytest.raises(WeightsError) as caught:
        load_weights(saved)
    assert str(caught.value).count("config says") == 5
    assert "more)" in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, bad: float) -> None:
    tensors = load_file(saved)
    tensors["cell.blocks.1.conv2.weight"][0, 0, 0, 0] = bad
    save_file(tensors, saved)
    with pytest.raises(WeightsError, match=r"cell\.blocks\.1\.conv2\.weight holds NaN or infinity"):
        load_weights(saved)


def test_a_senseless_config_is_named_with_its_file(saved: Path) -> None:
    change_config(saved, classes=0)
    with pytest.raises(ConfigError, match=r"model\.json: .*classes is 0"):
        load_weights(saved)


# What cannot be written


def test_another_suffix_is_refused(model: MDEQ, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        save_weights(model, CARD, tmp_path / "model.pth")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(model: MDEQ, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"cannot write .*/file/model.safetensors"):
        save_weights(model, CARD, tmp_path / "file" / "model.safetensors")


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_weights_that_do_not_fit_leave_the_old_ones(
    saved: Path, build: Callable[..., MDEQ]
) -> None:
    before = saved.read_bytes()
    with at_most(4096), pytest.raises(WeightsError, match="what was there is intact"):
        save_weights(build(CONFIG, seed=1), CARD, saved)
    assert saved.read_bytes() == before
    assert names(saved.parent) == NAMES


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_late_leaves_the_old_weights(
    saved: Path, build: Callable[..., MDEQ], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = saved.read_bytes()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(WeightsError, match="No space left"):
        save_weights(build(CONFIG, seed=1), CARD, saved)
    assert saved.read_bytes() == before
    assert names(saved.parent) == NAMES
