"""What edge-mdeq writes, each in an old and a new version, and how to tell which one is there."""

from __future__ import annotations

from artefact import Artefact
from device_artefacts import DeviceKey, Engine, GraphCache
from model_artefacts import Bundle, BundleAside, Checkpoint, NewFolder, SameShape, Weights
from run_artefacts import Hard, Lines, Masks, Newest, PlainVideo, Video

__all__ = ["ARTEFACTS", "Artefact"]

ARTEFACTS: dict[str, Artefact] = {
    "bundle": Bundle(),
    "bundle-aside": BundleAside(),
    "new-folder": NewFolder(),
    "weights": Weights(),
    "weights-same-shape": SameShape(),
    "checkpoint": Checkpoint(),
    "graph-cache": GraphCache(),
    "engine": Engine(),
    "video": Video(),
    "plain-video": PlainVideo(),
    "json-lines": Lines(),
    "hard-frames": Hard(),
    "newest": Newest(),
    "masks": Masks(),
    "device-key": DeviceKey(),
}
