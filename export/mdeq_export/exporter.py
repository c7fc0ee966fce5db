"""The export from end to end: weights in, verified bundle out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import (
    Manifest,
    Profile,
    SolverCurve,
    SolverSpec,
    Tolerance,
    writing_bundle,
)
from edge_mdeq.bundle.manifest import encode_manifest
from edge_mdeq.bundle.measurements import update_measurements
from edge_mdeq.bundle.precision import usual_precision
from edge_mdeq.bundle.reader import MANIFEST
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.config import InputConfig, ModelCard
from edge_mdeq.errors import ConfigError, ConvergenceError, DataError
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.solvers.registry import SOLVERS
from edge_mdeq.version import __version__
from edge_mdeq.weights import load_weights
from mdeq_export.answers import Answer
from mdeq_export.compose import Pieces
from mdeq_export.convergence import (
    CANDIDATES,
    LIMIT,
    Goal,
    cell_flops,
    choose,
    equilibria,
    largest_radius,
    measure,
    reference_curve,
)
from mdeq_export.floor import residual_floor
from mdeq_export.graphs import DYNAMIC_TRIED, check_counts, write_profile
from mdeq_export.images import verification_images
from mdeq_export.interface import ANY, between, interface
from mdeq_export.names import check_names
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES, lookup_profile
from mdeq_export.quantize import (
    Quantiser,
    calibration_images,
    calibration_warnings,
    check_int8,
    require_bearable,
    require_metric,
)
from mdeq_export.reference import TorchReference
from mdeq_export.report.measurements import measure_times
from mdeq_export.report.page import write_report
from mdeq_export.verify import TOLERANCES, require_parity, verify

__all__ = ["ExportSettings", "export_bundle"]

FALLBACK = "ort-cpu"
VERIFICATION_IMAGES, FEWEST_IMAGES = 8, 2
FLOPS = 3e10  # of one evaluation of every image that solvers are measured on; that takes some 150
GATE_FLOPS = 6e11  # of the evaluations that graphs are compared in with torch
HEAVY_FLOPS = 5e10  # of an evaluation of one image; from here on that one takes minutes
CONVERGED = 0.05  # residual; what the authors of DEQ call good convergence
AUTO = "auto"
TOOLS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


@dataclass(frozen=True)
class ExportSettings:
    """What to export.

    Attributes:
        iterations: N of each rung, evaluations of f. With the solver "auto" those above what the
            chosen one needs are left out, and that number is added.
        solver: "fixed_point", "anderson" or "broyden", with ``solver_settings`` (tau; m, beta, lam;
            m), or "auto": the cheapest that meets ``goal``, found by measuring.
        goal: what "auto" asks of a solver, ``Goal()`` if None.
        best: graphs return the iterate with the lowest residual instead of their last.
        size: (height, width) of the input; None keeps the weights' own.
        batch: images that a graph takes at once.
        dynamic_batch: leave their number open instead.
        targets: profiles to lower the graphs for. ``ort-cpu`` is added in single precision if it is
            not among them, so that every bundle runs somewhere.
        half: the model computes in FP16 in the profiles that are asked for.
        int8: rungs with integer convolutions beside those in single precision, in every profile;
            see ``mdeq_export.quantize``.
        refine: with int8, how many evaluations at the end of a refined rung are in single
            precision; 0: no such rungs.
        score: with int8, what scores the rungs of so many evaluations of a bundle's folder on
            labelled data, by precision: int8 and refined ones are held to single precision.
        tolerances: what the parity gate allows, by precision.
        images: folder of images to measure and verify on; None generates some.
        force: replace an existing bundle.
    """

    iterations: tuple[int, ...] = (1, 2, 4, 8)
    solver: str = "fixed_point"
    solver_settings: dict[str, float] = field(default_factory=dict)
    goal: Goal | None = None
    best: bool = False
    size: tuple[int, int] | None = None
    batch: int = 1
    dynamic_batch: bool = False
    targets: tuple[str, ...] = (FALLBACK,)
    half: bool = False
    int8: bool = False
    refine: int = 1
    score: Callable[[Path, int], dict[str, float]] | None = None
    tolerances: dict[str, Tolerance] = field(default_factory=lambda: dict(TOLERANCES))
    images: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_counts(self.iterations)
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, need at least 1")
        if self.dynamic_batch and self.batch != 1:
            raise ConfigError("batch and dynamic_batch exclude each other; give one of them")
        check_names("target", self.targets, PROFILES)
        check_int8(self)
        check_names("solver", [self.solver], (*SOLVERS, AUTO))
        if self.solver == AUTO:
            if self.solver_settings:
                raise ConfigError(f"solver {AUTO!r} finds its settings; name a solver to set them")
            return
        make_solver(self.solver, **self.solver_settings)
        if self.goal is not None:
            raise ConfigError(
                f"f_tol and max_metric_drop are what solver {AUTO!r} is chosen by; with "
                f"{self.solver!r} leave them out, and choose by iterations"
            )


def export_bundle(
    weights: Path,
    out: Path,
    settings: ExportSettings | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Manifest:
    """Export ``weights`` (``.safetensors``, or its folder) to the bundle ``out`` and verify it.

    Returns:
        The manifest, with what the verification measured.

    Raises:
        WeightsError, ConfigError, DataError: bad input; nothing is written.
        ConvergenceError: no solver meets the goal (solver "auto"); nothing is written.
        ParityError: the graphs do not compute what torch does; nothing is written.
        BundleError: ``out`` cannot be written, or exists and ``force`` is not set.
    """
    settings = settings or ExportSettings()
    progress("reading weights")
    frozen, card = load_frozen(weights)
    config = card.input
    if settings.size is not None:
        config = replace(config, height=settings.size[0], width=settings.size[1])
    card.model.check_size(config.height, config.width)
    flops = cell_flops(frozen, config)
    least = FEWEST_IMAGES if settings.solver == AUTO or flops < HEAVY_FLOPS else 1
    images, source = verification_images(
        settings.images, affordable(FLOPS / flops, least), config.height, config.width
    )
    if settings.solver == AUTO and len(images) < FEWEST_IMAGES:
        raise DataError(
            f"{settings.images} holds {len(images)} image; to choose a solver takes at least "
            f"{FEWEST_IMAGES}, better {VERIFICATION_IMAGES}"
        )
    batch = DYNAMIC_TRIED if settings.dynamic_batch else settings.batch
    calibration = None
    if settings.int8:  # before anything is measured: a folder that will not do is said at once
        calibration = calibration_images(
            settings.images, max(2, affordable(FLOPS / flops, least)), config.height, config.width
        )
    with writing_bundle(out, settings.force) as folder:
        plan, goals = decide(frozen, config, settings, images, progress)
        solver = make_solver(plan.curve.solver, **plan.curve.settings)
        progress("tracing the pieces")
        pieces = trace_pieces(
            frozen, config, solver, settings.batch, settings.dynamic_batch, settings.best
        )
        reference = TorchReference(frozen, config, solver, settings.best, goals)
        profiles = write_profiles(pieces, settings, plan, folder, progress)
        if calibration is not None:
            quantiser = Quantiser(
                pieces,
                calibration,
                tuple((image, goals[image.tobytes()]) for image in images),
                plan.iterations,
                settings.refine,
                card.model.task == "classification",
                folder,
                progress,
            )
            profiles = quantiser.add(profiles)
            del quantiser, calibration
        del pieces, frozen, goals  # and what follows the verification needs no weights in memory
        profiles = {
            name: with_floor(profile, folder, reference, images, batch)
            for name, profile in profiles.items()
        }
        check_goal(settings, profiles)
        report = verify(
            reference,
            profiles,
            folder,
            images[: affordable(GATE_FLOPS / flops / compared(plan.iterations), least)],
            source,
            settings.tolerances,
            batch,
            progress=progress,
        )
        del reference
        require_parity(report)
        require_bearable(report)
        first = next(iter(profiles.values()))
        manifest = Manifest(
            name=out.stem,
            created_by=f"edge-mdeq {__version__}",
            task=card.model.task,
            labels=card.labels,
            palette=card.palette,
            **interface(card, config, ANY if settings.dynamic_batch else settings.batch),
            **between(folder / first.parts[0].advance[0].graph, card.model.scales),
            solver=SolverSpec(plan.curve.solver, plan.curve.settings, settings.best),
            profiles=profiles,
            verification=replace(
                report,
                curves=plan.curves,
                reference_curve=plan.reference,
                spectral_radius=plan.radius,
            ),
            provenance=card.provenance,
            metrics=card.metrics if config == card.input else {},  # they are of its size
            warnings=plan.warnings + calibration_warnings(settings.int8, settings.images),
            tools={name: version(name) for name in TOOLS},
            files=describe_files(folder),
            precision=usual_precision(first),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        if settings.score is not None:
            progress("scoring on labelled data")
            require_metric(settings.score(folder, max(plan.iterations)))
        progress("measuring times")  # after the hashes: it is of this machine and moment
        update_measurements(folder, **measure_times(folder, manifest))
        progress("writing the report")
        write_report(folder, manifest, images, source)
    return manifest


def write_profiles(
    pieces: Pieces,
    settings: ExportSettings,
    plan: Plan,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Profile]:
    """Every profile that is asked for, and the fallback, which comes first."""
    precision = "fp16" if settings.half else "fp32"
    wanted = dict.fromkeys(settings.targets, precision)
    wanted = {FALLBACK: wanted.get(FALLBACK, "fp32")} | wanted
    profiles = {}
    for name, asked in wanted.items():
        target = lookup_profile(name)
        flagged = asked == "fp16" and target.half == "flag"  # then the graph is the same in both
        used = "fp32" if flagged else asked
        profile = write_profile(pieces, target, plan.iterations, folder, used, progress)
        profiles[name] = replace(profile, flags=("FP16",) if flagged else ())
    return profiles


def with_floor(
    profile: Profile,
    folder: Path,
    reference: TorchReference,
    images: NDArray[np.uint8],
    batch: int,
) -> Profile:
    """``profile`` with the residual that its half precision cannot get below."""
    parts = tuple(
        replace(part, residual_floor=residual_floor(part, folder, reference, images, batch))
        if part.precision == "fp16"
        else part
        for part in profile.parts
    )
    return replace(profile, parts=parts)


def check_goal(settings: ExportSettings, profiles: dict[str, Profile]) -> None:
    """Refuse a tolerance that half precision cannot meet.

    Raises:
        ConvergenceError: the goal's tolerance is below the floor of a profile.
    """
    tol = (settings.goal or Goal()).tol
    if settings.solver != AUTO or tol is None:
        return
    for name, profile in profiles.items():
        if tol < profile.residual_floor:
            raise ConvergenceError(
                f"{name}: in FP16 the residual does not get below {profile.residual_floor:.1e} on "
                f"these weights, and {tol:g} is asked for; raise --f-tol, or leave out --half"
            )


def load_frozen(weights: Path) -> tuple[MDEQ, ModelCard]:
    """The model for inference; the weights as they were trained do not stay in memory."""
    model, card = load_weights(weights)
    return model.freeze(), card


def affordable(count: float, least: int = FEWEST_IMAGES) -> int:
    """How many images to take if there is time for ``count``."""
    return max(least, min(VERIFICATION_IMAGES, int(count)))


def compared(iterations: Sequence[int]) -> int:
    """Evaluations of one image that comparing all rungs takes, from a cold and a warm start each.

    Torch passes the shorter solves on its way to the longest.
    """
    return 2 * (max(iterations) + sum(iterations))


@dataclass(frozen=True)
class Plan:
    """What will be exported, and why.

    Attributes:
        curve: of the solver.
        curves: of all that were measured, this one first.
        reference: of the converged solve.
        iterations: N of each rung.
        radius: the spectral radius.
        warnings: for the manifest.
    """

    curve: SolverCurve
    curves: tuple[SolverCurve, ...]
    reference: SolverCurve
    iterations: tuple[int, ...]
    radius: float
    warnings: tuple[str, ...] = ()


def decide(
    model: MDEQ,
    config: InputConfig,
    settings: ExportSettings,
    images: NDArray[np.uint8],
    progress: Callable[[str], None],
) -> tuple[Plan, dict[bytes, Answer]]:
    """Measure the named solver, or all of them and choose; and the converged answers, by image.

    Raises:
        ConvergenceError: "auto", and none meets the goal.
    """
    progress("converged reference solve")
    goals = equilibria(model, config, images)
    known = {image.tobytes(): goal for image, goal in zip(images, goals, strict=True)}
    reference = reference_curve(model, config, goals)
    progress("spectral radius")
    radius = round(largest_radius(model, config, images, goals), 4)

    def curve(name: str, options: dict[str, float], limit: int) -> SolverCurve:
        shown = ", ".join(f"{key} {value:g}" for key, value in options.items())
        progress(f"measuring {name} {shown}".rstrip())
        return measure(model, config, name, options, images, goals, settings.best, limit)

    if settings.solver == AUTO:
        curves = [curve(name, options, LIMIT) for name, options in CANDIDATES]
        choice = choose(curves, settings.goal or Goal(), radius)
        below = [count for count in settings.iterations if count < choice.evaluations]
        counts = (*below, choice.evaluations)
        return Plan(choice.curve, choice.curves, reference, counts, radius), known
    limit = max(LIMIT, *settings.iterations)
    found = curve(settings.solver, settings.solver_settings, limit)
    left = found.residual[-1]
    warnings: tuple[str, ...] = ()
    if not left <= CONVERGED:
        warnings = (
            f"{settings.solver} does not converge on these weights: a residual of {left:.2g} is "
            f"left after {limit} evaluations (spectral radius {radius:.2f}). Answers depend on the "
            "number of evaluations; `edge-mdeq tune` shapes weights that converge",
        )
    return Plan(found, (found,), reference, settings.iterations, radius, warnings), known
