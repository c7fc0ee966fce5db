"""All that strangers can hand to edge-mdeq."""

from __future__ import annotations

from of_bundles import Frames, Graphs, Manifests, Signatures, Weights
from of_files import Cards, Checkpoints, Media
from of_requests import Requests
from of_words import Settings, Sources
from target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, type[Target]] = {  # the quickest first
    "sources": Sources,
    "requests": Requests,
    "media": Media,
    "signatures": Signatures,
    "frames": Frames,
    "manifests": Manifests,
    "checkpoints": Checkpoints,
    "cards": Cards,
    "graphs": Graphs,
    "weights": Weights,
    "settings": Settings,
}
