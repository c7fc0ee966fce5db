"""All that strangers can hand to edge-mdeq."""

from __future__ import annotations

from of_bundles import Frames, Graphs, Manifests, Signatures, Weights
from of_files import Cards, Checkpoints, Media
from of_requests import Requests
from of_words import Settings, Sources
from target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, type[Target]] = {
    "manifests": Manifests,
    "graphs": Graphs,
    "weights": Weights,
    "signatures": Signatures,
    "cards": Cards,
    "checkpoints": Checkpoints,
    "sources": Sources,
    "media": Media,
    "frames": Frames,
    "requests": Requests,
    "settings": Settings,
}
