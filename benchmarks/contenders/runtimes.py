"""The model in a runtime without this project: a plain export, and OpenVINO on our graphs."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Any

import numpy as np

from contenders.base import AbsentError, Answer, Case, Contender, session
from contenders.ours import PROFILE, label
from edge_mdeq.bundle import Bundle, Rung, open_bundle
from edge_mdeq.files import replacing

__all__ = ["runtimes"]

EVALUATIONS = 2  # a warm frame's


def runtimes(case: Case) -> list[Contender]:
    """A warm frame each; rungs of several precisions in OpenVINO."""
    if case.memory_only:
        return []
    bundle = open_bundle(case.bundle)
    rungs = [r for r in bundle.profile(PROFILE).rungs if r.evaluations == EVALUATIONS]
    found = [
        Contender(
            name=f"torch.onnx.export of {EVALUATIONS} evaluations, ONNX Runtime",
            kind="naive",
            prepare=partial(naive, case),
            start="warm",
            evaluations=EVALUATIONS,
            libraries=("onnxruntime", "mdeq_runtime"),
        )
    ]
    return found + [
        Contender(
            name=f"OpenVINO on our graph, {label(rung)}",
            kind="openvino",
            prepare=partial(openvino, bundle, rung, case.threads),
            precision=rung.steps[0].precision,
            start="warm",
            evaluations=EVALUATIONS,
            libraries=("openvino", "onnxruntime", "mdeq_runtime"),
        )
        for rung in rungs
    ]


def naive(case: Case) -> Answer:
    """The unrolled module as a user would export it, the states in and out."""
    path = case.folder / f"naive-k{EVALUATIONS}.onnx"
    if not path.exists():
        export_naive(case, path)
    running = session(path, case.threads)
    names = [value.name for value in running.get_inputs()]
    shapes = [value.shape for value in running.get_inputs()[1:]]
    states = [np.zeros(shape, np.float32) for shape in shapes]

    def answer(image: np.ndarray) -> None:
        nonlocal states
        _, *states = running.run(None, dict(zip(names, [image[None], *states], strict=True)))

    return answer


def export_naive(case: Case, path: Any) -> None:
    """``torch.onnx.export`` with nothing but its defaults."""
    import torch
    from torch import nn

    from edge_mdeq.weights import load_weights

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    model, card = load_weights(case.weights)
    model.eval()
    mean = torch.tensor(card.input.mean).view(1, 3, 1, 1)
    std = torch.tensor(card.input.std).view(1, 3, 1, 1)

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any, *z: Any) -> Any:
            u = self.model.inject((image.permute(0, 3, 1, 2).float() / 255 - mean) / std)
            f = self.model.bind(u)
            for _ in range(EVALUATIONS):
                z = f(z)
            logits = self.model.readout(z)
            if card.model.task == "segmentation":
                logits = nn.functional.interpolate(
                    logits, case.size, mode="bilinear", align_corners=True
                )
            return logits.argmax(dim=1), *z

    image = torch.zeros((1, *case.size, 3), dtype=torch.uint8)
    with torch.no_grad():
        u = model.inject(torch.zeros((1, 3, *case.size)))
        states = [torch.zeros_like(z) for z in model.zero_state(u)]
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
            torch.onnx.export(
                Unrolled().eval(), (image, *states), str(temporary), dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip


def openvino(bundle: Bundle, rung: Rung, threads: int) -> Answer:
    """One of our graphs, in the precision that it says."""
    try:
        import openvino as ov
    except ImportError as error:
        raise AbsentError(f"{error}; pip install openvino") from error
    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # where a processor has BF16, it would take that
    }
    manifest = bundle.manifest
    try:
        model = core.compile_model(core.read_model(bundle.file(rung.graph)), "CPU", settings)
    except RuntimeError as error:
        raise AbsentError(f"OpenVINO refuses it: {str(error).splitlines()[0][:200]}") from error
    request = model.create_infer_request()
    given = {s.name: np.zeros((1, *s.shape[1:]), np.float32) for s in manifest.states}

    def answer(image: np.ndarray) -> float:
        request.infer({manifest.input.tensor.name: image[None], **given})
        for spec, name in zip(manifest.states, manifest.state_outputs, strict=True):
            given[spec.name] = request.get_tensor(name).data.copy()
        return float(request.get_tensor(manifest.residual.name).data[0])

    return answer
