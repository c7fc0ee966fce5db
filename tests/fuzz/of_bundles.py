"""Bundles with damaged parts, opened as a device opens them, and frames that they answer."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from typing import Any

from mutate import mutate_bytes, mutate_json
from target import BUNDLE, Target

__all__ = ["Bundles", "Frames", "Graphs", "Manifests", "Signatures", "Weights"]


class Bundles(Target):
    """Readers of a bundle, which answer a frame where it is taken."""

    def prepare(self) -> None:
        import numpy as np
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        self.bundle = self.work / BUNDLE
        shutil.copytree(self.folder / BUNDLE, self.bundle)
        self.manifest = (self.bundle / "manifest.json").read_bytes()
        self.frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        self.answer()

    def answer(self, graph: str = "") -> None:
        """Answer a frame by a policy that loads ``graph``."""
        from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance

        count = re.search(r"solve-k(\d+)", graph)
        policy = FixedIterations(int(count[1])) if count else UntilTolerance(max_iterations=3)
        settings = SessionSettings(policy) if graph else None
        with Model(self.bundle, settings, threads=1, device="cpu") as model:
            model(self.frame)


class Manifests(Bundles):
    """``manifest.json``: bytes, and values of valid JSON."""

    def case(self, rng: random.Random) -> None:
        change = mutate_json if rng.random() < 0.7 else mutate_bytes
        (self.bundle / "manifest.json").write_bytes(change(rng, self.manifest))
        self.answer()


class Files(Bundles):
    """Files that the manifest names; their hashes are made right again."""

    kind = ""

    def prepare(self) -> None:
        super().prepare()
        names = sorted(json.loads(self.manifest)["files"])
        files = {name: (self.bundle / name).read_bytes() for name in names}
        self.files = {name: data for name, data in files.items() if self.is_one(name)}

    def is_one(self, name: str) -> bool:
        return name.endswith(self.kind) and "piece-" not in name

    def case(self, rng: random.Random) -> None:
        name = rng.choice(sorted(self.files))
        other = self.files[rng.choice(sorted(self.files))]
        data = mutate_bytes(rng, self.files[name], other)
        place = self.bundle / name
        place.write_bytes(data)
        manifest = json.loads(self.manifest)
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (self.bundle / "manifest.json").write_text(json.dumps(manifest))
        try:
            self.answer(name)
        finally:
            place.write_bytes(self.files[name])


class Graphs(Files):
    """ONNX files."""

    kind = ".onnx"


class Weights(Files):
    """The weights that all graphs share."""

    def is_one(self, name: str) -> bool:
        return not name.endswith(".onnx")


class Signatures(Bundles):
    """``manifest.sig`` and the file of a public key."""

    def prepare(self) -> None:
        from edge_mdeq.bundle import signature

        self.bundle = self.work / BUNDLE
        shutil.copytree(self.folder / BUNDLE, self.bundle)
        self.manifest = (self.bundle / "manifest.json").read_bytes()
        key = self.work / "key.pem"
        self.public, _ = signature.make_key(key)
        signature.sign_manifest(self.bundle, self.manifest, signature.read_private_key(key))
        self.signed = (self.bundle / signature.SIGNATURE).read_bytes()
        self.key = self.public.read_bytes()
        self.check()

    def check(self) -> None:
        from edge_mdeq.bundle import open_bundle

        open_bundle(self.bundle, require_signature=self.public)

    def case(self, rng: random.Random) -> None:
        signed, key = self.signed, self.key
        if rng.random() < 0.3:
            key = mutate_bytes(rng, key, signed)
        else:
            change = mutate_json if rng.random() < 0.5 else mutate_bytes
            signed = change(rng, signed)
        (self.bundle / "manifest.sig").write_bytes(signed)
        self.public.write_bytes(key)
        self.check()


class Frames(Bundles):
    """Frames of any type, shape, layout and value; the session goes on afterwards."""

    def prepare(self) -> None:
        from mdeq_runtime import Model

        super().prepare()
        self.model = Model(self.bundle, threads=1, device="cpu")

    def case(self, rng: random.Random) -> None:
        from edge_mdeq.errors import EdgeMdeqError

        try:
            result = self.model(draw_frame(rng))
            assert result.output.size
        finally:
            try:
                again = self.model(self.frame)
            except EdgeMdeqError as error:
                raise AssertionError(f"a good frame is not answered any more: {error}") from error
            assert again.output.shape == self.frame.shape[:2]


def draw_frame(rng: random.Random) -> Any:
    """A frame, or what is none."""
    import numpy as np

    if rng.random() < 0.1:
        return rng.choice((None, 3, "x", b"", [], [[1, 2, 3]], object(), np.uint8(3), float("nan")))
    kinds = ["u1"] * 8 + ["u2", "i1", "i8", "f2", "f4", "f8", "c8", "?", "S3", "U2", "O", "M8[s]"]
    dtype = np.dtype(rng.choice(kinds))
    sizes = (1, 2, 3, 5, 31, 48, 64, 65, 300)
    shape = [rng.choice(sizes), rng.choice(sizes), 3]
    if rng.random() < 0.3:
        shape = [rng.choice((0, 1, 2, 3, 4, 17)) for _ in range(rng.randrange(6))]
    frame = np.zeros(shape, dtype)
    if dtype.kind in "uif":
        with np.errstate(all="ignore"):
            noise = np.random.default_rng(rng.randrange(2**32)).normal(100, 10**6, shape)
            frame = noise.astype(dtype)
        if dtype.kind == "f" and frame.size and rng.random() < 0.5:
            frame.flat[0] = rng.choice((np.nan, np.inf, -np.inf))
    kind = rng.randrange(8)
    if kind == 0 and frame.ndim:
        frame = frame[tuple(slice(None, None, rng.choice((1, 2, -1, -3))) for _ in frame.shape)]
    elif kind == 1 and frame.ndim > 1:
        frame = frame.transpose(rng.sample(range(frame.ndim), frame.ndim))
    elif kind == 2:
        frame = np.broadcast_to(np.zeros((1, 1, 3), dtype), (rng.choice((1, 7, 20_000)), 500, 3))
    elif kind == 3:
        frame = np.asfortranarray(frame)
    elif kind == 4:
        frame.flags.writeable = False
    elif kind == 5:
        frame = np.broadcast_to(np.zeros((1, 1, 3), dtype), (10**6, 10**6, 3))
    elif kind == 6 and frame.ndim == 2:
        frame = np.asmatrix(frame) if dtype.kind != "O" else np.ma.masked_array(frame)
    return frame
