"""What a build may be told, and what of a bundle is to be built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_mdeq.bundle import Profile
from edge_mdeq.errors import ConfigError
from mdeq_runtime.policies import FixedIterations, Policy
from mdeq_runtime.solving import fixed_chains
from mdeq_runtime.tensorrt.versions import Release

__all__ = ["BuildSettings", "in_fp16", "needed", "smallest_first"]

WORKSPACE = 2**28  # bytes
LEVELS = range(6)


@dataclass(frozen=True)
class BuildSettings:
    """What a build may be told.

    Attributes:
        half: compute convolutions in FP16 where precision is a flag of the builder (8.6).
        workspace: bytes of device memory that a layer may use while it is timed and while it runs.
        level: builder optimisation level, 0 (fastest build) to 5; None: the version's default.
        capabilities: for RTX, the compute capabilities to build for, such as "SM86"; none: that of
            the GPU at hand.
        compatibility: a hardware compatibility level, such as "ampere_plus"; None: this GPU only.
        version_compatible: an engine that later versions of the same major take too.
        stream_weights: an engine whose weights may stay with the host while it runs.
        batch: the least, usual and largest number of images, where a graph leaves it open.
    """

    half: bool = False
    workspace: int = WORKSPACE
    level: int | None = None
    capabilities: tuple[str, ...] = ()
    compatibility: str | None = None
    version_compatible: bool = False
    stream_weights: bool = False
    batch: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        if self.workspace <= 0:
            raise ConfigError(f"a workspace of {self.workspace} bytes makes no sense")
        if self.level is not None and self.level not in LEVELS:
            raise ConfigError(f"builder optimisation level {self.level} is not one of 0 to 5")
        least, usual, largest = self.batch
        if not 1 <= least <= usual <= largest:
            raise ConfigError(f"batch {self.batch} must be the least, the usual and the largest")


def in_fp16(release: Release, profile: Profile, half: bool) -> bool:
    """Whether the builder's flag for FP16 is to be set: where it is one, and is asked for.

    Raises:
        ConfigError: precision lies in the graph, and the bundle's graphs are in single precision.
    """
    if release.weakly_typed:
        return half or "FP16" in profile.flags
    if half and all(weights.precision != "fp16" for weights in profile.weights):
        raise ConfigError(
            f"for {release.name} precision lies in the graph, and these are in FP32: export the "
            f"bundle again with --half --target {release.profile}"
        )
    return False


def needed(profile: Profile, policies: Sequence[Policy], carry: bool = True) -> list[str]:
    """The graphs that sessions with these policies run, smallest first; no others.

    Raises:
        SessionError: counts that cannot be made of the profile's rungs.
    """
    graphs = set[str]()
    for policy in policies:
        if isinstance(policy, FixedIterations):
            warm, cold = fixed_chains(profile.rungs, policy, carry)
            graphs |= {rung.graph for rung in (*warm, *cold)}
        elif profile.parts:
            parts = profile.parts[0]
            single = min(parts.advance, key=lambda rung: rung.evaluations)
            graphs |= {parts.inject, single.graph, parts.readout}
    return smallest_first(profile, graphs)


def smallest_first(profile: Profile, graphs: Iterable[str]) -> list[str]:
    """In the order in which they are likely to fit: by how much there is to compile."""
    evaluations = {rung.graph: rung.evaluations for rung in profile.rungs}
    evaluations |= {r.graph: r.evaluations for part in profile.parts for r in part.advance}
    return sorted(graphs, key=lambda graph: (evaluations.get(graph, 0), graph))
