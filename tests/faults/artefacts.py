"""What edge-mdeq writes, each in an old and a new version, and how to tell which one is there."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["ARTEFACTS", "Artefact"]


class Artefact(ABC):
    """A file or folder that edge-mdeq writes.

    Attributes:
        place: its name, in the folder that ``write`` is given.
    """

    place = ""

    def load(self) -> None:  # noqa: B027  (most need nothing)
        """Import what ``write`` needs, before there is a child to trace."""

    @abstractmethod
    def write(self, folder: Path, version: str) -> None:
        """Write the version "old" or "new" into ``folder``."""

    @abstractmethod
    def read(self, folder: Path) -> str | None:
        """Which version is there, wholly; None: none.

        Raises whatever a reader of the product raises for what is not whole.
        """


class Bundle(Artefact):
    """A folder with a manifest and hashed files."""

    place = "tiny.mdeq"
    exchanges = True

    def load(self) -> None:
        pass

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.bundle import writer

        if not self.exchanges:  # as on a file system without renameat2
            writer.exchange = lambda a, b: False
        with writer.writing_bundle(folder / self.place, force=True) as path:
            files = {
                "graphs/ort-cpu/fp32.data": version.encode() * 30_000,
                "graphs/ort-cpu/solve-k1.onnx": bytes([0x12, len(version)]) + version.encode(),
            }
            for name, data in files.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
            (path / "manifest.json").write_text(json.dumps(manifest(version, files)))

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.bundle import open_bundle

        if not (folder / self.place).exists():
            return None
        return open_bundle(folder / self.place, verify=True).manifest.name


class BundleAside(Bundle):
    """The same where two names cannot be exchanged: for a moment the old one lies aside."""

    exchanges = False

    def read(self, folder: Path) -> str | None:
        found = super().read(folder)
        asides = [path for path in folder.glob(f".{self.place}.*.tmp/old") if path.is_dir()]
        if found is None and asides:
            from edge_mdeq.bundle import open_bundle

            return open_bundle(asides[0], verify=True).manifest.name
        return found


class NewFolder(Artefact):
    """A plain file, in folders that are not there yet."""

    place = "a/b/file.json"

    def load(self) -> None:
        pass

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.files import make_folder, write_atomic

        make_folder((folder / self.place).parent)
        write_atomic(folder / self.place, json.dumps([version] * 20_000).encode())

    def read(self, folder: Path) -> str | None:
        path = folder / self.place
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        assert len(values) == 20_000
        return str(values[0])


class Weights(Artefact):
    """Weights and the card beside them: of two architectures, so that neither fits the other."""

    place = "model.safetensors"

    def load(self) -> None:
        pass

    def write(self, folder: Path, version: str) -> None:
        from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
        from edge_mdeq.model import MDEQ
        from edge_mdeq.weights import save_weights

        classes = {"old": 2, "new": 3}[version]
        config = ModelConfig(
            task="segmentation", classes=classes, channels=(8, 8), expansion=1, groups=4
        )
        card = ModelCard(config, InputConfig(32, 32), provenance=Provenance(version))
        save_weights(MDEQ(config), card, folder / self.place)

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.weights import load_weights

        if not (folder / self.place).exists():
            return None
        model, card = load_weights(folder / self.place)
        assert model.config == card.model
        return card.provenance.name


class SameShape(Weights):
    """The same of one architecture: a card that is not of its weights would go unnoticed."""

    def write(self, folder: Path, version: str) -> None:
        import torch

        from edge_mdeq.config import InputConfig, ModelCard, ModelConfig, Provenance
        from edge_mdeq.model import MDEQ
        from edge_mdeq.weights import save_weights

        config = ModelConfig(task="segmentation", classes=2, channels=(8, 8), expansion=1, groups=4)
        card = ModelCard(config, InputConfig(32, 32), provenance=Provenance(version))
        torch.manual_seed(len(version))
        model = MDEQ(config)
        with torch.no_grad():
            for value in model.parameters():
                value.fill_({"old": 1.0, "new": 2.0}[version])
        save_weights(model, card, folder / self.place)

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.weights import load_weights

        if not (folder / self.place).exists():
            return None
        model, card = load_weights(folder / self.place)
        value = float(next(model.parameters()).detach().flatten()[0])
        assert {1.0: "old", 2.0: "new"}[value] == card.provenance.name
        return card.provenance.name


class Checkpoint(Artefact):
    """What a training run goes on from."""

    place = "checkpoint.pt"

    def load(self) -> None:
        pass

    def write(self, folder: Path, version: str) -> None:
        import torch

        from edge_mdeq.training.checkpoint import save_checkpoint

        save_checkpoint(folder / self.place, {"version": version, "x": torch.ones(10_000)})

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.training.checkpoint import load_checkpoint

        if not (folder / self.place).exists():
            return None
        state = load_checkpoint(folder / self.place)
        assert int(state["x"].sum()) == 10_000
        return str(state["version"])


class Recording(Artefact):
    """What ``run`` writes frame by frame; the versions differ in their number of frames.

    ``read`` takes the beginning of the new one for the new one: a run that is killed has no end.
    """

    frames: ClassVar = {"old": 3, "new": 8}
    size = (96, 128)
    seconds = 0.5  # from frame to frame

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks import open_sink

        return open_sink(folder / self.place, fps=2.0, labels=("sky", "road"))

    def write(self, folder: Path, version: str) -> None:
        import numpy as np

        from mdeq_runtime.results import Frame, Result

        shade = {"old": 60, "new": 200}[version]
        mask = np.full(self.size, version == "new", np.uint8)
        with self.sink(folder) as sink:
            for index in range(self.frames[version]):
                picture = np.full((*self.size, 3), shade, np.uint8)
                result = Result(mask, None, shade, 0.5, False, True, "", index=index)
                sink.write(Frame(picture, index, index * self.seconds), result)


class Video(Recording):
    """Fragments of an .mp4: what plays is a whole number of them."""

    place = "video.mp4"

    def read(self, folder: Path) -> str | None:
        import cv2

        path = folder / self.place
        if not path.exists():
            return None
        video, shades = cv2.VideoCapture(str(path)), []
        while True:
            done, image = video.read()
            if not done:
                break
            shades.append(float(image[:32].mean()))  # hardly any of the figures are there
        assert shades, "nothing plays"
        assert max(shades) - min(shades) < 5, "frames of both"
        version = "new" if shades[0] > 95 else "old"
        assert len(shades) <= self.frames[version]
        if version == "old" or not path.name.endswith(".mp4"):
            assert len(shades) == self.frames[version]
        return version


class PlainVideo(Video):
    """An .avi, which is renamed when it is finished."""

    place = "video.avi"


class Lines(Recording):
    """JSON lines, begun anew by the first result; whole ones, in order, from then on."""

    place = "results.jsonl"

    def read(self, folder: Path) -> str | None:
        path = folder / self.place
        if not path.exists():
            return None
        text = path.read_text()
        assert not text or text.endswith("\n"), "a torn line"
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["index"] for line in lines] == list(range(len(lines)))
        kinds = {line["iterations"] for line in lines}
        assert len(kinds) <= 1
        version = "old" if kinds == {60} else "new"
        assert version == "new" or len(lines) == self.frames["old"]
        return version


class Hard(Recording):
    """Pictures with a JSON each; those of the old version stay."""

    place = "hard"
    frames: ClassVar = {"old": 1, "new": 2}
    seconds = 2.0

    def load(self) -> None:
        super().load()

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks.hard import HardFrames

        return HardFrames(folder / self.place, 10**8)

    def read(self, folder: Path) -> str | None:
        import cv2

        place = folder / self.place
        if not place.exists():
            return None
        kinds = set()
        for text in place.glob("*.json"):
            kinds.add(json.loads(text.read_text())["iterations"])
            assert cv2.imread(str(text.with_suffix(".png"))) is not None
        for picture in place.glob("[!.]*.png"):
            assert cv2.imread(str(picture)) is not None
        return "new" if 200 in kinds else "old" if kinds else None


class GraphCache(Artefact):
    """A graph as ONNX Runtime optimises it; an entry that is not whole is made anew."""

    place = "cache"

    def load(self) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.graphs = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, self.graphs)
        for version in ("old", "new"):
            (self.graphs / version).write_bytes(self.graph(version))

    def write(self, folder: Path, version: str) -> None:
        assert self.cache(folder).session(self.graphs / version, version) is not None

    def read(self, folder: Path) -> str | None:
        cache = self.cache(folder)
        entries = [path for path in (folder / self.place).glob("[!.]*") if path.is_dir()]
        assert all(cache.is_whole(entry) for entry in entries)
        found = [version for version in ("new", "old") if cache.has(version)]
        return found[0] if found else None

    def cache(self, folder: Path) -> Any:
        import onnxruntime

        from mdeq_runtime.backends.graph_cache import GraphCache as Cache

        return Cache(folder / self.place, onnxruntime, onnxruntime.SessionOptions)

    def graph(self, version: str) -> bytes:
        from onnx import TensorProto, helper

        value = helper.make_tensor("w", TensorProto.FLOAT, [4], [len(version)] * 4)
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
        gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
        node = helper.make_node("Add", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "g", [given], [gives], [value])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return bytes(model.SerializeToString())


class DeviceKey(Artefact):
    """A secret that is made once: an old one stays."""

    place = "state/edge-mdeq/device.key"

    def load(self) -> None:
        pass

    def write(self, folder: Path, version: str) -> None:
        from mdeq_runtime.device_key import device_key

        device_key(folder / self.place)

    def read(self, folder: Path) -> str | None:
        from mdeq_runtime.device_key import device_key

        path = folder / self.place
        return "new" if path.exists() and len(device_key(path)) == 32 else None


class Newest(Recording):
    """One picture, which each frame replaces."""

    place = "newest.png"

    def read(self, folder: Path) -> str | None:
        import cv2

        path = folder / self.place
        if not path.exists():
            return None
        image = cv2.imread(str(path))
        assert image is not None, "half a picture"
        return "new" if image[:32].mean() > 95 else "old"


class Masks(Recording):
    """A picture of class indices per frame."""

    place = "masks"

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks import open_sink

        return open_sink(f"masks://{folder / self.place}")

    def read(self, folder: Path) -> str | None:
        import cv2

        masks = [cv2.imread(str(path)) for path in (folder / self.place).glob("*.png")]
        assert all(mask is not None for mask in masks), "half a picture"
        kinds = {int(mask.max()) for mask in masks}
        return "new" if 1 in kinds else "old" if kinds else None


def manifest(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The least that is a manifest."""

    def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": shape}

    weights, graph = files
    state = tensor("state_0", "float32", 1, 4, 8, 8)
    return {
        "format": "edge-mdeq-bundle",
        "schema": 1,
        "name": name,
        "created_by": "edge-mdeq 0.1.0",
        "task": "segmentation",
        "labels": ["sky", "road"],
        "palette": [],
        "input": {
            "tensor": tensor("image", "uint8", 1, 32, 32, 3),
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "output": {"tensor": tensor("mask", "uint8", 1, 32, 32), "kind": "class_indices"},
        "confidence": None,
        "states": [state],
        "state_outputs": ["next_0"],
        "residual": tensor("residual", "float32", 1),
        "injection": tensor("injection", "float32", 1, 4, 8, 8),
        "values": ["next_0"],
        "history": [],
        "history_outputs": [],
        "solver": {"name": "fixed_point"},
        "profiles": {
            "ort-cpu": {
                "opset": 21,
                "weights": [{"precision": "fp32", "file": weights, "bytes": len(files[weights])}],
                "rungs": [{"steps": [{"precision": "fp32", "evaluations": 1}], "graph": graph}],
            }
        },
        "verification": {
            "images": 1,
            "source": "test://",
            "tolerances": {},
            "reference_evaluations": 1,
            "reference_residual": 0.1,
            "backend": "none",
            "rungs": [],
        },
        "provenance": {},
        "files": {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for file, data in files.items()
        },
    }


MAKERS: dict[str, Callable[[], Artefact]] = {
    "bundle": Bundle,
    "bundle-aside": BundleAside,
    "new-folder": NewFolder,
    "weights": Weights,
    "weights-same-shape": SameShape,
    "checkpoint": Checkpoint,
    "graph-cache": GraphCache,
    "video": Video,
    "plain-video": PlainVideo,
    "json-lines": Lines,
    "hard-frames": Hard,
    "newest": Newest,
    "masks": Masks,
    "device-key": DeviceKey,
}
ARTEFACTS: dict[str, Artefact] = {name: make() for name, make in MAKERS.items()}
