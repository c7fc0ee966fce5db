"""Files that are no whole checkpoint of one MDEQ: each refused, with the culprits named."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import published_checkpoint, value
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_mdeq.checkpoints import import_checkpoint, open_checkpoint
from edge_mdeq.checkpoints.convert import build_model
from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import WeightsError
from edge_mdeq.registry import lookup

Tensors = dict[str, Tensor]

BLOCK = "fullstage.branches.0.blocks.0"


def tiny() -> Tensors:
    return published_checkpoint(lookup("cifar-tiny").model, "v2")


def save(value: Any, folder: Path) -> Path:
    torch.save(value, folder / "c.pth")
    return folder / "c.pth"


def refused(path: Path, *parts: str) -> str:
    """Importing ``path`` fails with a message that has all ``parts``; returns the message."""
    with pytest.raises(WeightsError) as caught:
        import_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message
    return message


# Code


class Trap:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


class Evaluated(Trap):
    """... through eval."""

    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("trap", [Trap, Evaluated])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "beside the weights"])
def test_code_in_a_pickle_is_refused_and_did_not_run(
    trap: type[Trap], kind: str, tmp_path: Path
) -> None:
    executed, path = tmp_path / "executed", tmp_path / "c.pkl"
    armed = {**tiny(), "classifier.bias": trap(executed)}
    if kind == "zip":
        torch.save(armed, path)
    elif kind == "legacy":
        torch.save(armed, path, _use_new_zipfile_serialization=False)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps({"classifier.bias": trap(executed)}, protocol=2))
    else:
        torch.save({"state_dict": tiny(), "epoch": trap(executed)}, path)
    refused(path, "could execute code", "mkdir" if trap is Trap else "eval", "state_dict()")
    assert not executed.exists()
    # The payload is live: what the importer did not do, unpickling does.
    pickle.loads(pickle.dumps(trap(executed)))
    assert executed.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    refused(save(nn.Linear(2, 2), tmp_path), "asks for 'torch.nn.modules.linear.Linear'")


# No readable file


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "does not exist")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.5, 0.9, 0.9999])
def test_half_a_file(kept: float, new: bool, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(tiny(), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(path, "truncated" if kept else "is empty")


def test_half_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file(tiny(), path)
    path.write_bytes(path.read_bytes()[:5000])
    refused(path, "truncated")


@pytest.mark.parametrize(
    "content", [b"not a checkpoint\n" * 100, bytes(range(256)) * 8, b"PK\x03\x04" + b"\0" * 200]
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pkl").write_bytes(content)
    refused(tmp_path / "c.pkl")


def test_a_tar_archive_of_the_first_torch(tmp_path: Path) -> None:
    path = tmp_path / "c.pth.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            content = pickle.dumps({}, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    refused(path, "tar archive", "save it again")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "holds a list, not a mapping"),
        (torch.ones(3), "holds a Tensor, not a mapping"),
        ({}, "is empty"),
        ({"state_dict": {}}, "is empty"),
        ({"epoch": 3, "lr": 0.1}, "holds epoch (int), lr (float)"),
        ({"state_dict": {1: torch.ones(2)}}, "holds 1 (Tensor)"),
    ],
)
def test_no_mapping_of_names_to_tensors(content: Any, message: str, tmp_path: Path) -> None:
    refused(save(content, tmp_path), message)


# Another network


def test_another_network_is_named_by_its_keys(tmp_path: Path) -> None:
    resnet = OrderedDict(
        (key, torch.zeros(4))
        for key in ["conv1.weight", "bn1.weight", *(f"layer1.{i}.conv1.weight" for i in range(20))]
    )
    refused(
        save(resnet, tmp_path), "not a checkpoint of an MDEQ", "none of its 22 keys",
        "conv1.weight, bn1.weight, layer1.0.conv1.weight", "and 12 more",
    )  # fmt: skip


def test_our_own_keys_need_no_import(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "c.pth")
    model, _ = import_checkpoint(tmp_path / "c.pth")
    refused(save(model.state_dict(), tmp_path), "edge-mdeq's own keys")


def test_copies_alone_are_not_the_weights(tmp_path: Path) -> None:
    config = ModelConfig("segmentation", 3, (8, 16))
    kept = {
        key: tensor
        for key, tensor in published_checkpoint(config, "v1").items()
        if not key.startswith("fullstage.")
    }
    refused(save(kept, tmp_path), "copies of f only", "fullstage.*, are missing")


def test_two_models_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    two = {**tiny(), **{f"model.{key}": tensor for key, tensor in tiny().items()}}
    refused(save(two, tmp_path), "holds downsample.0.weight twice", "model.downsample.0.weight")


# Keys left over or missing


@pytest.mark.parametrize(
    "key",
    [
        "downsample.3.weight", f"{BLOCK}.conv1.weight_v", f"{BLOCK}.conv1.weight_g",
        f"{BLOCK}.gn2.bias", "fullstage.fuse_layers.1.0.net.0.gnorm.weight",
        "fullstage.post_fuse_layers.1.conv.weight_v", "incre_modules.0.0.bn1.running_mean",
        "incre_modules.1.0.downsample.0.weight", "downsamp_modules.0.0.bias", "classifier.weight",
    ],
)  # fmt: skip
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    tensors = tiny()
    del tensors[key]
    refused(save(tensors, tmp_path), "1 keys are missing", key.removesuffix("_v"))


def test_a_key_left_over_is_named_as_the_file_spells_it(tmp_path: Path) -> None:
    tensors = {f"module.{key}": tensor for key, tensor in tiny().items()}
    tensors["module.aux_head.weight"] = torch.ones(3)
    tensors["module.classifier.scale"] = torch.ones(3)
    refused(
        save(tensors, tmp_path), "2 keys are left over",
        "module.aux_head.weight, module.classifier.scale",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["imagenet-small", "cityscapes-small"])
def test_half_the_keys(name: str, tmp_path: Path) -> None:
    row = lookup(name).model
    whole = {
        key: tensor
        for key, tensor in published_checkpoint(row, "v2").items()
        if not key.endswith("num_batches_tracked")
    }
    names = list(whole)
    middle = len(names) // 2
    for kept in (names[::2], names[:middle], names[middle:]):
        message = refused(save({key: whole[key] for key in kept}, tmp_path), "keys are missing")
        found = re.search(r"(\d+) keys are missing: ([^;]*)", message)
        assert found
        listed, _, more = found[2].partition(" and ")
        culprits = listed.split(", ")
        assert int(found[1]) == len(culprits) + int(more.removesuffix(" more") or 0)
        assert not set(culprits) & set(kept)
        assert ("a readout" in message) == (kept == names[:middle])


def test_a_gain_without_a_last_norm_on_every_scale(tmp_path: Path) -> None:
    tensors = tiny()
    tensors["fullstage.post_fuse_layers.0.gnorm.weight"] = torch.ones(24)
    refused(
        save(tensors, tmp_path), "3 keys are missing", "fullstage.post_fuse_layers.1.gnorm.weight"
    )


def test_two_readouts(tmp_path: Path) -> None:
    tensors = {**tiny(), "last_layer.0.bias": torch.ones(48)}
    refused(save(tensors, tmp_path), "two readouts")


# Variants that no published model uses


def test_big_kernels_are_named(tmp_path: Path) -> None:
    tensors = tiny()
    tensors[f"{BLOCK}.conv1.weight_v"] = torch.ones(120, 24, 5, 5)
    refused(save(tensors, tmp_path), "BIG_KERNELS", f"{BLOCK}.conv1.weight_v (5x5)", "no published")


def test_a_deeper_stem_is_named(tmp_path: Path) -> None:
    tensors = {**tiny(), "downsample.DS3.weight": torch.ones(24, 24, 3, 3)}
    refused(save(tensors, tmp_path), "DOWNSAMPLE_TIMES above 2", "downsample.DS3.weight")


def test_a_second_block_is_named(tmp_path: Path) -> None:
    tensors = {**tiny(), "fullstage.branches.0.blocks.1.gn1.bias": torch.ones(120)}
    refused(save(tensors, tmp_path), "NUM_BLOCKS", "fullstage.branches.0.blocks.1.gn1.bias")


# Values


def set_nan(tensors: Tensors) -> None:
    tensors[f"{BLOCK}.gn1.bias"][7] = float("nan")
    tensors["classifier.weight"][0, 0] = float("inf")


def set_zero_row(tensors: Tensors) -> None:
    tensors[f"{BLOCK}.conv1.weight_v"][5] = 0


def set_negative_variance(tensors: Tensors) -> None:
    tensors["downsample.1.running_var"][0] = -1


def set_underflow(tensors: Tensors) -> None:
    tensors["fullstage.post_fuse_layers.1.conv.weight_v"] *= 1e-38
    tensors["fullstage.post_fuse_layers.1.conv.weight_g"] *= 1e38


def set_integers(tensors: Tensors) -> None:
    tensors["classifier.bias"] = torch.ones(10, dtype=torch.int64)


def set_sparse(tensors: Tensors) -> None:
    tensors["classifier.weight"] = tensors["classifier.weight"].to_sparse()


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (set_nan, ("2 keys hold NaN or infinity", f"{BLOCK}.gn1.bias, classifier.weight")),
        (set_zero_row, ("1 keys hold a row of zeros", f"{BLOCK}.conv1.weight_v", "NaN")),
        (set_negative_variance, ("1 keys hold a negative variance", "downsample.1.running_var")),
        (set_underflow, ("weight norm overflows", "fullstage.post_fuse_layers.1.conv.weight")),
        (set_integers, ("1 keys are not dense float tensors", "classifier.bias")),
        (set_sparse, ("1 keys are not dense float tensors", "classifier.weight")),
    ],
)
def test_values_that_make_no_sense(
    spoil: Callable[[Tensors], None], parts: tuple[str, ...], tmp_path: Path
) -> None:
    tensors = tiny()
    spoil(tensors)
    refused(save(tensors, tmp_path), *parts)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (f"{BLOCK}.conv1.weight_g", (120,)),
        ("fullstage.branches.1.blocks.0.conv2.weight_v", (24, 96, 3, 3)),
        ("downsample.3.weight", (24, 24, 1, 1)),
        ("fullstage.fuse_layers.0.1.net.conv.weight", ()),
        ("incre_modules.0.0.bn3.running_var", (31,)),
    ],
)
def test_a_shape_that_does_not_fit_is_named(
    key: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {**tiny(), key: value(key, shape)}
    refused(save(tensors, tmp_path), "1 tensors do not fit", f"{key} is {shape}, not (")


def test_blocks_must_be_whole_multiples_wide(tmp_path: Path) -> None:
    tensors = tiny()
    tensors[f"{BLOCK}.conv1.weight_v"] = torch.ones(100, 24, 3, 3)
    refused(save(tensors, tmp_path), "100 channels wide inside and 24 outside")


def test_a_config_of_another_model_does_not_fit(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tiny(), tmp_path))
    with pytest.raises(WeightsError, match="keys are missing"):
        build_model(checkpoint, lookup("imagenet-small").model)
