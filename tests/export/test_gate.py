"""The parity gate looks at every output of a graph: a fault in one alone is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_mdeq.bundle import RungParity, Verification, open_bundle
from edge_mdeq.errors import ParityError
from edge_mdeq.solvers import FixedPoint, solve
from edge_mdeq.weights import load_weights
from mdeq_export.images import scene
from mdeq_export.pieces import Inject
from mdeq_export.reference import TorchReference
from mdeq_export.verify import TOLERANCES, require_parity, verify

Copy = Callable[[Path], Path]


def gate(weights: Path, bundle: Path, images: int = 1) -> Verification:
    """What the verification finds of the first rung, on few images."""
    model, card = load_weights(weights)
    reference = TorchReference(model.freeze(), card.input, FixedPoint(), best=False)
    pictures = np.stack([scene(k, card.input.height, card.input.width) for k in range(images)])
    profiles = open_bundle(bundle).manifest.profiles
    return verify(reference, profiles, bundle, pictures, "scenes", TOLERANCES, only=[1])


def enlarge(graph: Path, output: str) -> None:
    """One output of a graph becomes one percent larger."""
    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        for k, name in enumerate(node.output):
            if name == output:
                node.output[k] = "honest"
        for k, name in enumerate(node.input):
            if name == output:
                node.input[k] = "honest"
    factor = onnx.numpy_helper.from_array(np.float32(1.01), "factor")
    model.graph.initializer.append(factor)
    model.graph.node.append(onnx.helper.make_node("Mul", ["honest", "factor"], [output]))
    onnx.save(model, graph)


@pytest.mark.parametrize(
    ("kind", "output"),
    [("segmenter", "confidence"), ("segmenter", "residual"), ("classifier", "output")],
)
def test_a_fault_in_one_output_is_found(
    kind: str, output: str, own_copy: Copy, request: pytest.FixtureRequest
) -> None:
    """States, classes and all other outputs are what they should be."""
    weights: Path = request.getfixturevalue(f"{kind}_weights")
    bundle = own_copy(request.getfixturevalue(f"{kind}_bundle"))
    (honest,) = gate(weights, bundle).rungs
    enlarge(bundle / "graphs/ort-cpu/solve-k1.onnx", output)
    report = gate(weights, bundle)
    (rung,) = report.rungs
    with pytest.raises(ParityError, match=rf"solve-k1 .* in its output '{output}', allowed is 1e-"):
        require_parity(report)
    wanted = largest_value(weights, output)
    assert rung.outputs[output] == pytest.approx(0.01 * wanted, rel=1e-2)
    whole = replace(honest, residual=rung.residual, residual_max_rel=rung.residual_max_rel)
    assert replace(rung, outputs={}) == replace(whole, outputs={})
    others = {name: gap for name, gap in rung.outputs.items() if name != output}
    assert others == {name: gap for name, gap in honest.outputs.items() if name != output}


def largest_value(weights: Path, output: str) -> float:
    """By torch, after one evaluation from zero or from the equilibrium."""
    model, card = load_weights(weights)
    found = []
    with torch.no_grad():
        image = torch.from_numpy(scene(0, card.input.height, card.input.width)[None])
        u = Inject(model, card.input)(image)
        f, zero = model.bind(u), model.zero_state(u)
        for start in (zero, solve(f, zero, FixedPoint(), 60).value):
            end = solve(f, start, FixedPoint(), 1)
            if output == "residual":
                found.append(end.residual)
            else:
                found.append(torch.softmax(model.readout(end.value), dim=1))
    return max(float(x.max()) for x in found)


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_every_output_of_every_rung_is_accounted_for(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(f"{kind}_bundle")
    bundle = open_bundle(path)
    rungs = bundle.manifest.verification.rungs
    assert len(rungs) == 3
    for rung in rungs:
        outputs = onnx.load(
            path / f"graphs/ort-cpu/solve-k{rung.evaluations}.onnx", load_external_data=False
        ).graph.output
        floats = [o.name for o in outputs if o.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
        assert list(rung.outputs) == floats
        assert_close(rung)


def assert_close(rung: RungParity) -> None:
    """Largest differences of single precision, those of the states among them."""
    states = [gap for name, gap in rung.outputs.items() if name.startswith("next_state")]
    assert max(states) == rung.state_max_abs
    assert all(0 <= gap < 1e-4 for gap in rung.outputs.values())
    assert sum(gap > 0 for gap in rung.outputs.values()) >= len(states)
