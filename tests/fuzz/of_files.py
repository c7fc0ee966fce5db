"""Damaged files of other kinds: weights, checkpoints, pictures and videos."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "edge_mdeq"))  # for published

from mutate import mutate_bytes, mutate_json
from target import Target

__all__ = ["Cards", "Checkpoints", "Media"]


class Cards(Target):
    """``NAME.safetensors`` with the card beside it."""

    def prepare(self) -> None:

        self.weights = (self.folder / "base.safetensors").read_bytes()
        self.card = (self.folder / "base.json").read_bytes()
        self.read(self.weights, self.card)

    def read(self, weights: bytes, card: bytes) -> None:
        from edge_mdeq.weights import load_weights

        (self.work / "a.safetensors").write_bytes(weights)
        (self.work / "a.json").write_bytes(card)
        load_weights(self.work / "a.safetensors")

    def case(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            change = mutate_json if rng.random() < 0.7 else mutate_bytes
            self.read(self.weights, change(rng, self.card))
        elif rng.random() < 0.5:
            self.read(mutate_bytes(rng, self.weights), self.card)
        else:
            size = 8 + int.from_bytes(self.weights[:8], "little")
            change = mutate_json if rng.random() < 0.7 else mutate_bytes
            header = change(rng, self.weights[8:size])
            weights = len(header).to_bytes(8, "little") + header + self.weights[size:]
            self.read(weights, self.card)


class Checkpoints(Target):
    """Foreign checkpoints: pickles in zip files, older pickles, safetensors."""

    def prepare(self) -> None:
        import torch
        from published import published_checkpoint
        from safetensors.torch import save_file

        from edge_mdeq.config import ModelConfig

        config = ModelConfig("segmentation", 3, (8, 16), expansion=1, groups=8)
        for layout in ("v1", "v2"):
            state = published_checkpoint(config, layout)
            wrapped = {"state_dict": state, "epoch": 3, "best": 0.5}
            torch.save(wrapped, self.work / f"{layout}.pth.tar")
            torch.save(state, self.work / f"{layout}.pkl", _use_new_zipfile_serialization=False)
        save_file(state, self.work / "v2.safetensors")
        self.examples = {path.name: path.read_bytes() for path in sorted(self.work.iterdir())}
        for name, data in self.examples.items():
            self.read(name, data)

    def read(self, name: str, data: bytes) -> None:
        from edge_mdeq.checkpoints import ImportSettings, import_checkpoint

        path = self.work / f"case-{name}"
        path.write_bytes(data)
        import_checkpoint(path, ImportSettings(size=(64, 64), downsample_times=2))

    def case(self, rng: random.Random) -> None:
        name = rng.choice(sorted(self.examples))
        self.read(name, mutate_bytes(rng, self.examples[name]))


class Media(Target):
    """Video and picture files with damaged bytes."""

    def prepare(self) -> None:
        import cv2
        import numpy as np

        noise = np.random.default_rng(0)
        pictures = [noise.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(4)]
        for suffix in ("png", "jpg", "bmp", "tiff", "webp"):
            cv2.imwrite(str(self.work / f"a.{suffix}"), pictures[0])
        for suffix, codec in (("mp4", "mp4v"), ("avi", "MJPG")):
            path = str(self.work / f"a.{suffix}")
            video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*codec), 5, (64, 48))
            for picture in pictures:
                video.write(picture)
            video.release()
        self.examples = {path.name: path.read_bytes() for path in sorted(self.work.iterdir())}

    def case(self, rng: random.Random) -> None:
        from mdeq_runtime.sources import open_source

        name = rng.choice(sorted(self.examples))
        path = self.work / f"case-{name}"
        path.write_bytes(mutate_bytes(rng, self.examples[name]))
        with open_source(path) as source:
            for _ in range(8):
                if source.read() is None:
                    break
