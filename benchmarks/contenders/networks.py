"""What a user would deploy instead, in the same runtime: ResNets, MobileNetV3, EfficientNet-Lite0.

Their weights are drawn, which no time depends on. int8 is ONNX Runtime's own quantisation: Q/DQ,
asymmetric uint8 activations, weights per channel.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from contenders.base import Answer, Case, Contender, session
from edge_mdeq.files import replacing

__all__ = ["NETWORKS", "networks"]

NETWORKS = ("ResNet-50", "ResNet-101", "MobileNetV3-Large", "EfficientNet-Lite0")
CALIBRATION = 4  # images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def networks(case: Case) -> list[Contender]:
    """Each in both precisions, at the model's size."""
    if case.memory_only:
        return []
    return [
        Contender(
            name=f"{name}, {precision}",
            kind="network",
            prepare=partial(prepare, case, name, precision),
            precision=precision,
        )
        for precision in ("fp32", "int8")
        for name in NETWORKS
    ]


def prepare(case: Case, name: str, precision: str) -> Answer:
    """Its graph, made at the first time, in ONNX Runtime."""
    height, width = case.size
    stem = f"{name.lower()}-{height}x{width}"
    plain = case.folder.parent / "networks" / f"{stem}-fp32.onnx"
    plain.parent.mkdir(parents=True, exist_ok=True)
    if not plain.exists():
        export(name, case.size, plain)
    path = plain.with_name(f"{stem}-{precision}.onnx")
    if not path.exists():
        quantise(plain, path, case.size)
    running = session(path, case.threads)
    given = running.get_inputs()[0].name

    def answer(image: np.ndarray) -> None:
        running.run(None, {given: image[None]})

    return answer


def export(name: str, size: tuple[int, int], path: Path) -> None:
    """uint8 images (1, H, W, 3) to logits, the normalisation in the graph as in ours."""
    import torch
    from mobile_peers import efficientnet_lite0, mobilenet_v3_large
    from peers import resnet
    from torch import nn

    makers: dict[str, Any] = {
        "ResNet-50": partial(resnet, 50),
        "ResNet-101": partial(resnet, 101),
        "MobileNetV3-Large": mobilenet_v3_large,
        "EfficientNet-Lite0": efficientnet_lite0,
    }
    torch.manual_seed(0)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)

    class FromPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = makers[name]()

        def forward(self, image: Any) -> Any:
            return self.network((image.permute(0, 3, 1, 2).float() / 255 - mean) / std)

    image = torch.zeros((1, *size, 3), dtype=torch.uint8)
    with replacing(path) as temporary:
        export_quickly(FromPixels().eval(), image, temporary)


def export_quickly(module: Any, image: Any, path: Path) -> None:
    """By torch's older exporter: a hundred layers in seconds, to the same operators."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is the older one
        torch.onnx.export(
            module, (image,), str(path), input_names=["image"], dynamo=False, opset_version=17
        )


def quantise(plain: Path, path: Path, size: tuple[int, int]) -> None:
    """ONNX Runtime's static quantisation, with its recommended preparation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    from mdeq_export.images import verification_images

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            images, _ = verification_images(None, CALIBRATION, *size)
            self.left = iter([{name: image[None]} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    ready = path.with_suffix(".ready.onnx")
    try:
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        with replacing(path) as temporary:
            quantize_static(
                str(ready),
                str(temporary),
                Reader("image"),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    finally:
        ready.unlink(missing_ok=True)
