"""Target profiles: how graphs are lowered for a kind of runtime."""

from __future__ import annotations

from dataclasses import dataclass

from mdeq_export.passes import Anonymise, DropIdentity, GraphPass, LowerGroupNorm

__all__ = ["PROFILES", "TargetProfile"]


@dataclass(frozen=True)
class TargetProfile:
    """A name, and the passes that every piece goes through, in order."""

    name: str
    passes: tuple[GraphPass, ...]


PROFILES = {
    profile.name: profile
    for profile in (TargetProfile("ort-cpu", (Anonymise(), LowerGroupNorm(), DropIdentity())),)
}
