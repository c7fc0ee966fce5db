"""What a device keeps for itself: optimised graphs, engines, its key."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from artefact import Artefact
from model_artefacts import manifest

__all__ = ["DeviceKey", "Engine", "GraphCache"]


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

    def write(self, folder: Path, version: str) -> None:
        from mdeq_runtime.device_key import device_key

        device_key(folder / self.place)

    def read(self, folder: Path) -> str | None:
        from mdeq_runtime.device_key import device_key

        path = folder / self.place
        return "new" if path.exists() and len(device_key(path)) == 32 else None


class Engine(Artefact):
    """An engine with its record, put into place as ``edge-mdeq engine`` does; nothing compiles."""

    place = "engines"
    graph = "graphs/ort-cpu/solve-k1.onnx"

    def load(self) -> None:
        assert self.bundle.is_dir()

    @cached_property
    def bundle(self) -> Path:
        """A bundle with that graph; the same content in every process."""
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder)
        bundle = folder / "tiny.mdeq"
        files = {"graphs/ort-cpu/fp32.data": b"weights", self.graph: b"\x12\x01x"}
        for name, data in files.items():
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).write_bytes(data)
        (bundle / "manifest.json").write_text(json.dumps(manifest("tiny", files)))
        return bundle

    def write(self, folder: Path, version: str) -> None:
        from mdeq_runtime.tensorrt.child import Event
        from mdeq_runtime.tensorrt.settings import BuildSettings
        from mdeq_runtime.tensorrt.workshop import Workshop

        class Stub(Workshop):
            def run(self, job: Any, graph: str) -> Event:
                Path(job.engine).write_bytes(version.encode() * 30_000)
                return Event("built", measured={"seconds": 1.0})

        store = self.store(folder)
        store.tidy()
        Stub(store, False, BuildSettings()).build(self.graph)

    def read(self, folder: Path) -> str | None:
        from edge_mdeq.errors import EngineError

        try:
            engine = self.store(folder).find(self.graph).read_bytes()
        except EngineError:
            return None
        assert len(engine) == 90_000
        return engine[:3].decode()

    def store(self, folder: Path) -> Any:
        from edge_mdeq.bundle import open_bundle
        from mdeq_runtime.tensorrt.engines import EngineStore
        from mdeq_runtime.tensorrt.identity import Identity

        here = Identity("Orin", "8.7", "36.4", "12.6", "540.4", "10.3.0", "tensorrt-10", "fp32")
        return EngineStore(open_bundle(self.bundle), "ort-cpu", here, folder / self.place)
