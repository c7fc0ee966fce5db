"""The verification sees every weight, and computes what the published implementations did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published import published_checkpoint
from reference import load_fill, reference_checkpoint, shared_reference
from tiny_checkpoints import CLASSIFIER, GIVEN, SEGMENTER, save
from torch import Tensor

from edge_mdeq.checkpoints import import_checkpoint, open_checkpoint, require_agreement
from edge_mdeq.checkpoints.formulas import RawModel
from edge_mdeq.checkpoints.verify import compare, noise, trajectory
from edge_mdeq.errors import ParityError
from edge_mdeq.model import MDEQ


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
