"""``edge-mdeq import`` as a user meets it: messages, files, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import Layout, published_checkpoint
from torch import Tensor

from edge_mdeq.checkpoints import convert
from edge_mdeq.cli import main
from edge_mdeq.config import InputConfig, read_card
from edge_mdeq.model import MDEQ
from edge_mdeq.registry import lookup
from edge_mdeq.weights import load_weights

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs the command line and returns exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edge-mdeq", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, " ".join(printed.out.split()), " ".join(printed.err.split())

    return call


def tiny(layout: Layout = "v2") -> dict[str, Tensor]:
    return published_checkpoint(
        replace(lookup("cifar-tiny").model, post_norm_affine=layout != "v2"), layout
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(tiny("v1"), tmp_path / "tiny.pkl")
    return tmp_path / "tiny.pkl"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_import_says_what_it_found_and_what_comes_next(
    command: Command, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "w.safetensors"
    code, printed, _ = command("import", checkpoint, "-o", out)
    assert code == 0
    assert "tiny.pkl: layout v1, 98 keys, without 90 of copies and loss" in printed
    assert "cifar-tiny: classification, 10 classes, channels 24, 24, expansion 5" in printed
    assert "158,986 parameters" in printed
    assert "18 steps of Broyden (19 evaluations of f), stop mode 'rel'" in printed
    assert f"wrote {out} and w.json" in printed
    assert printed.endswith(f"next: edge-mdeq export {out} -o cifar-tiny.mdeq")
    assert "relative difference" not in printed
    assert names(out.parent) == ["w.json", "w.safetensors"]
    model, card = load_weights(out)
    assert card.labels == lookup("cifar-tiny").labels
    theirs = tiny("v1")["fullstage.branches.0.blocks.0.conv1.weight_v"]
    assert torch.equal(model.state_dict()["cell.blocks.0.conv1.weight"], theirs)


def wrapped(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of the segmentation training wrapper, distributed."""
    inner = {f"module.model.{key}": tensor for key, tensor in tensors.items()}
    return {"epoch": 484, "state_dict": {**inner, "module.loss.criterion.weight": torch.ones(19)}}


@pytest.mark.parametrize(
    ("name", "layout", "keys"),
    [
        ("imagenet-small", "v1", "224 keys, without 288 of copies and loss"),
        ("cityscapes-small", "v2", "131 keys, without 1 of copies and loss"),
        ("imagenet-small", "torchdeq-imagenet", "220 keys,"),
    ],
)
def test_published_models_are_imported_and_verified(
    name: str, layout: Layout, keys: str, command: Command, tmp_path: Path
) -> None:
    entry = lookup(name)
    tensors: dict[str, Any] = published_checkpoint(entry.model, layout)
    if entry.model.task == "segmentation":
        tensors = wrapped(tensors)
    elif layout == "torchdeq-imagenet":  # as its training script saves it
        tensors = {f"module.{key}": tensor for key, tensor in tensors.items()}
        tensors = {"epoch": 100, "state_dict": tensors, "best_acc1": torch.tensor(75.7)}
    torch.save(tensors, tmp_path / "c.pth.tar")
    out = tmp_path / "w.safetensors"
    code, printed, errors = command("import", tmp_path / "c.pth.tar", "-o", out, "--verify")
    assert code == 0, errors
    assert keys.split(",")[0] in printed
    assert keys in printed or layout == "torchdeq-imagenet"
    for what in ("injection", "state 3 after 1 iteration", "state 0 after 4", "logits after 4"):
        assert what in printed
    assert "beyond" not in printed
    card = read_card(out.with_suffix(".json"))
    assert card.model == entry.model
    assert card.input == entry.input
    assert card.labels == entry.labels


def test_everything_can_be_given(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    out = tmp_path / "w.safetensors"
    code, printed, errors = command(
        "import", checkpoint, "-o", out, "--imgsz", 64, 48, "--mean", 0.1, 0.2, 0.3,
        "--std", 0.4, 0.5, 0.6, "--labels", tmp_path / "labels.txt", "--name", "mine",
        "--licence", "MIT", "--groups", 8, "--downsample-times", 0, "-q",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert printed.endswith("-o mine.mdeq")
    card = read_card(out.with_suffix(".json"))
    assert card.input == InputConfig(64, 48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert card.labels == tuple("abcdefghij")
    assert card.provenance.licence == "MIT"


def test_existing_weights_are_only_replaced_when_told_so(
    command: Command, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "w.safetensors"
    out.with_suffix(".json").write_text("mine")
    code, _, errors = command("import", checkpoint, "-o", out)
    assert code == 1
    assert "w.json exists already; give --force to replace it" in errors
    assert out.with_suffix(".json").read_text() == "mine"
    assert not out.exists()
    assert command("import", checkpoint, "-o", out, "--force")[0] == 0
    load_weights(out)


def test_the_checkpoint_itself_is_never_replaced(command: Command, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    save_file(tiny(), path)
    before = path.read_bytes()
    os.link(path, tmp_path / "same.safetensors")
    for out in (path, tmp_path / "same.safetensors"):
        code, _, errors = command("import", path, "-o", out, "--force")
        assert code == 1
        assert "is the checkpoint itself" in errors
    assert path.read_bytes() == before


def test_a_refused_checkpoint_leaves_nothing(command: Command, tmp_path: Path) -> None:
    tensors = tiny()
    del tensors["classifier.bias"]
    torch.save(tensors, tmp_path / "c.pth")
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"old")
    code, printed, errors = command("import", tmp_path / "c.pth", "-o", out, "--force")
    assert code == 1
    assert "1 keys are missing: classifier.bias" in errors
    assert "wrote" not in printed
    assert names(tmp_path) == ["c.pth", "w.safetensors"]
    assert out.read_bytes() == b"old"


def test_a_failed_verification_writes_nothing(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = convert.build_model

    def wrong(*args: Any) -> MDEQ:
        model = right(*args)
        model.state_dict()["cell.post.1.norm.bias"][0] += 0.01
        return model

    monkeypatch.setattr(convert, "build_model", wrong)
    code, printed, errors = command(
        "import", checkpoint, "-o", tmp_path / "w.safetensors", "--verify"
    )
    assert code == 1
    assert "beyond" in printed
    assert "state 1 after 1 iteration differs by" in errors
    assert "nothing was written" in errors
    assert names(tmp_path) == ["tiny.pkl"]


def test_an_output_that_cannot_be_written_leaves_nothing(
    command: Command, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = command("import", checkpoint, "-o", tmp_path / "file" / "w.safetensors")
    assert code == 1
    assert "cannot write" in errors
    assert names(tmp_path) == ["file", "tiny.pkl"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-o", "w.pth"], 1),
        ([], 2),
        (["-o", "w.safetensors", "--downsample-times", "3"], 2),
        (["-o", "w.safetensors", "--imgsz", "32"], 2),
        (["-o", "w.safetensors", "--mean", "0.5", "0.5"], 2),
        (["-o", "w.safetensors", "--groups", "5"], 1),
        (["-o", "w.safetensors", "--std", "0", "1", "1"], 1),
        (["-o", "w.safetensors", "--labels", "none.txt"], 1),
    ],
)
def test_bad_arguments(
    arguments: list[str], code: int, command: Command, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, _, errors = command("import", checkpoint, *arguments)
    assert got == code
    assert errors
    assert names(tmp_path) == ["tiny.pkl"]


def test_weights_elsewhere_name_the_import(command: Command, checkpoint: Path) -> None:
    code, _, errors = command("export", checkpoint, "-o", "x.mdeq")
    assert code == 1
    wanted = f"edge-mdeq import {checkpoint} -o {checkpoint.with_suffix('.safetensors')}"
    assert wanted in errors
