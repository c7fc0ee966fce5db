"""Further rungs for a bundle that exists, on a machine that has onnx but no torch.

The pieces that the bundle holds are composed again, and what they give is compared with the same
pieces run one evaluation at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, Manifest, Profile, open_bundle, writing_bundle
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.measurements import REPORT, read_measurements, update_measurements
from edge_mdeq.bundle.precision import precision_of
from edge_mdeq.bundle.reader import MANIFEST
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.errors import BundleError
from mdeq_export.answers import Answer
from mdeq_export.compose import IMAGE, INJECTION, INT8, RESIDUAL
from mdeq_export.cost import counted
from mdeq_export.graphs import DYNAMIC_TRIED, check_counts, read_pieces, write_rungs
from mdeq_export.images import verification_images
from mdeq_export.profiles import lookup_profile
from mdeq_export.quantize.gate import require_bearable
from mdeq_export.quantize.rungs import write_refined
from mdeq_export.report.measurements import measure_times
from mdeq_export.sessions import open_session
from mdeq_export.verify import (
    REFERENCE_EVALUATIONS,
    REFERENCE_TOL,
    StepPair,
    require_parity,
    verify,
)

__all__ = ["unroll_bundle"]

KINDS = ("fp32", "fp16", INT8, "refined")  # the order in which rungs are listed

Array = NDArray[Any]


def unroll_bundle(
    path: Path,
    counts: Iterable[int],
    images: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Add a rung of each of ``counts`` evaluations to every profile of the bundle at ``path``.

    The bundle is written anew beside the old one and takes its place when it is whole and verified.
    Rungs that are there already stay as they are.

    Args:
        path: the bundle.
        counts: evaluations of f.
        images: folder of images to verify on; None generates some.
        progress: told what is being done.

    Returns:
        The new manifest.

    Raises:
        BundleError: not a bundle, damaged, or without pieces; the bundle stays as it was.
        ConfigError: a count out of range.
        DataError: an image that cannot be read.
        ParityError: the new graphs do not compute what their pieces do; the bundle stays.
    """
    wanted = check_counts(counts)
    bundle = open_bundle(path, verify=True)
    manifest = bundle.manifest
    missing = {name: sorted(wanted - present(p)) for name, p in manifest.profiles.items()}
    if not any(missing.values()):
        return manifest
    batch = manifest.input.tensor.shape[0]
    pictures, source = verification_images(
        images, manifest.verification.images, *manifest.input.size
    )
    with writing_bundle(path, force=True) as folder:
        for file in (*manifest.files, MANIFEST):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, folder / file)
        profiles = {
            name: extended(Bundle(folder, manifest), name, missing[name], folder, progress)
            for name in manifest.profiles
        }
        report = verify(
            PartsReference(folder, manifest, profiles),
            profiles,
            folder,
            pictures,
            source,
            manifest.verification.tolerances,
            batch=batch if batch > 0 else DYNAMIC_TRIED,
            only={count for counts in missing.values() for count in counts},
            progress=progress,
        )
        added = [rung for rung in report.rungs if rung.evaluations in missing[rung.profile]]
        require_parity(replace(report, rungs=tuple(added)))
        require_bearable(replace(report, rungs=tuple(added)))
        order = list(profiles)
        rungs = sorted(
            (*manifest.verification.rungs, *added),
            key=lambda rung: (
                order.index(rung.profile),
                KINDS.index(rung.precision),
                rung.evaluations,
            ),
        )
        manifest = replace(
            manifest,
            profiles=profiles,
            verification=replace(manifest.verification, rungs=tuple(rungs)),
            files=describe_files(folder),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        progress("measuring times")
        update_measurements(folder, **read_measurements(path) | measure_times(folder, manifest))
        if (path / REPORT).is_file():
            renew_report(folder, manifest, pictures, source, progress)
    return manifest


def renew_report(
    folder: Path,
    manifest: Manifest,
    pictures: Array,
    source: str,
    progress: Callable[[str], None],
) -> None:
    """Write the report anew where its libraries are; an old one would not know the new rungs."""
    progress("writing the report")
    try:
        from mdeq_export.report.page import write_report

        write_report(folder, manifest, pictures, source)
    except ImportError as error:
        progress(f"no report: {error}")


def present(profile: Profile) -> set[int]:
    """Evaluations of the rungs that a profile has in the precision of its weights."""
    return {rung.evaluations for rung in profile.rungs if precision_of(rung) in ("fp32", "fp16")}


def extended(
    bundle: Bundle,
    name: str,
    counts: list[int],
    root: Path,
    progress: Callable[[str], None],
) -> Profile:
    """A profile of ``bundle`` with further rungs, written below ``root``."""
    profile = bundle.profile(name)
    if not counts:
        return profile
    solve, all_parts, target = list(profile.rungs), [], lookup_profile(name)
    refine = max((r.steps[-1].evaluations for r in solve if len(r.steps) > 1), default=0)
    for parts in profile.parts:
        pieces = read_pieces(bundle, name, parts.precision)
        place = (root / parts.inject).parent
        ladder = write_rungs(pieces, counts, root, place, target, parts.precision, {}, progress)
        solve += ladder.solve
        if parts.precision == INT8:
            solve += write_refined(pieces, counts, root, place, target, refine, {}, progress)
        known = {rung.graph for rung in parts.advance}
        advance = [*parts.advance, *(r for r in ladder.advance if r.graph not in known)]
        advance.sort(key=lambda rung: rung.evaluations)
        all_parts.append(replace(parts, advance=tuple(advance)))
    kinds = list(dict.fromkeys(map(precision_of, profile.rungs)))
    solve.sort(key=lambda rung: (kinds.index(precision_of(rung)), rung.evaluations))
    return counted(replace(profile, rungs=tuple(solve), parts=tuple(all_parts)), root)


class PartsReference:
    """The parts of a profile, one evaluation at a time: what a composed graph must agree with.

    Args:
        root: the bundle.
        manifest: of it.
        profiles: its profiles; the first one in single precision is run.
    """

    name: Literal["torch", "parts"] = "parts"

    def __init__(self, root: Path, manifest: Manifest, profiles: dict[str, Profile]) -> None:
        found = [parts for profile in profiles.values() for parts in profile.parts]
        if not found:
            raise BundleError(f"{root} holds no parts; export it again from its weights")
        parts = min(found, key=lambda parts: parts.precision != "fp32")
        single = next(rung for rung in parts.advance if rung.evaluations == 1)
        graphs = (parts.inject, single.graph, parts.readout)
        self.inject, self.advance, self.readout = (open_session(root / graph) for graph in graphs)
        self.manifest = manifest

    def bind(self, images: NDArray[np.uint8]) -> PartsProblem:
        return PartsProblem(self, images)


class PartsProblem:
    """B images (B, H, W, 3) uint8 and their injection."""

    def __init__(self, reference: PartsReference, images: NDArray[np.uint8]) -> None:
        self.reference, self.batch = reference, len(images)
        (self.u,) = reference.inject.run([INJECTION], {IMAGE: images})

    def injection(self) -> Array:
        return np.asarray(self.u)

    def converged(self) -> Answer:
        """The solver's own iteration for long; the best iterate of each image."""
        best: tuple[list[Array], Array] | None = None
        for value, residual in self.walk(None, REFERENCE_EVALUATIONS):
            best = better(value, residual, best)
            if (best[1] <= REFERENCE_TOL).all():
                break
        assert best is not None
        return self.answer(*best)

    def solve(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, Answer]:
        wanted, answers = set(counts), {}
        best: tuple[list[Array], Array] | None = None
        for count, (value, residual) in enumerate(self.walk(start, max(wanted, default=0)), 1):
            keeps = self.reference.manifest.solver.best
            best = better(value, residual, best if keeps else None)
            if count in wanted:
                answers[count] = self.answer(*best)
        return answers

    def rounding(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, float]:
        """None: both sides run the same nodes in the same precision."""
        return dict.fromkeys(counts, 0.0)

    def steps(self, start: list[Array] | None, count: int) -> Iterator[StepPair]:
        """None: see ``rounding``."""
        return iter(())

    def walk(self, start: list[Array] | None, count: int) -> Iterator[tuple[list[Array], Array]]:
        """Evaluation by evaluation: f at the iterate, and its residual."""
        manifest, session = self.reference.manifest, self.reference.advance
        specs = (*manifest.states, *manifest.history)
        outputs = (*manifest.state_outputs, *manifest.history_outputs)
        given = {s.name: np.zeros((self.batch, *s.shape[1:]), s.dtype) for s in specs}
        if start is not None:
            given |= {s.name: z for s, z in zip(manifest.states, start, strict=True)}
        names = [output.name for output in session.get_outputs()]
        for _ in range(count):
            found = dict(zip(names, session.run(names, {INJECTION: self.u} | given), strict=True))
            yield [found[name] for name in manifest.values], found[RESIDUAL]
            given = {s.name: found[name] for s, name in zip(specs, outputs, strict=True)}

    def answer(self, value: list[Array], residual: Array) -> Answer:
        session, specs = self.reference.readout, self.reference.manifest.states
        feeds = {spec.name: z for spec, z in zip(specs, value, strict=True)}
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        return Answer.read(value, residual, found)


def better(
    value: list[Array], residual: Array, best: tuple[list[Array], Array] | None
) -> tuple[list[Array], Array]:
    """Of two evaluations the one with the lower residual, per image."""
    if best is None:
        return value, residual
    lower = (residual < best[1]) | np.isnan(best[1])
    column = lower.reshape(-1, 1, 1, 1)
    states = [np.where(column, a, b) for a, b in zip(value, best[0], strict=True)]
    return states, np.where(lower, residual, best[1])
