"""The task metric of a bundle's graphs on labelled data, as training scores its own model.

Every image is fitted to the model's input size and answered there, from a cold start or from the
state that the frame before left. Nothing restarts a solve as a session would, so that a rung's
figure is that of its evaluations alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, Rung, open_bundle
from edge_mdeq.bundle.precision import check_precision, precision_of, select
from edge_mdeq.bundle.signature import KeyFiles
from edge_mdeq.datasets import (
    IGNORED,
    LAYOUTS,
    SEGMENTATION_LAYOUTS,
    DataConfig,
    LabelledImages,
    SegmentationFolder,
    open_classification,
    open_segmentation,
)
from edge_mdeq.errors import ConfigError, DataError
from edge_mdeq.fitting import FIT_MODES, FitMode
from edge_mdeq.metrics import class_accuracy, confusion_matrix, mean_iou
from mdeq_runtime.backends import Backend
from mdeq_runtime.backends.ort_cpu import PROFILE, OrtCpuBackend
from mdeq_runtime.ladder import plan

__all__ = ["RungScore", "ValReport", "ValSettings", "validate"]

Chain = tuple[Rung, ...]  # graphs that run one after the other
Dataset = SegmentationFolder | LabelledImages
Start = Literal["cold", "warm"]
MOST_CLASSES = 255  # of a mask whose bundle names none


@dataclass(frozen=True)
class ValSettings:
    """What to score, and how the data is read.

    Attributes:
        layout: "camvid" or "cityscapes" for segmentation, "folder" or "cifar10" for classification;
            None: the first of the task's.
        split: which part of the data.
        iterations: evaluations of f to score; sums of rungs are chained. Empty: every rung.
        precision: score rungs in "fp32", "int8" or "refined" alone; None: all that there are.
        warm: score the frames in order as well, each from the state of the one before.
        limit: look at so many images only: the first frames, or images from all classes.
        ignore: mask values that count nowhere.
        fit, centre, grey: how images meet the input size, as in a recipe's ``data`` section.
        threads: threads per graph, 0 for one per core.
        require_signature: public keys, one of which must have signed the bundle.
    """

    layout: str | None = None
    split: str = "val"
    iterations: Sequence[int] = ()
    precision: str | None = None
    warm: bool = False
    limit: int | None = None
    ignore: Sequence[int] = (255,)
    fit: FitMode = "stretch"
    centre: float = 1.0
    grey: bool = False
    threads: int = 0
    require_signature: KeyFiles | None = None

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ConfigError(f"layout {self.layout!r} is none of {', '.join(LAYOUTS)}")
        if self.fit not in FIT_MODES:
            raise ConfigError(f"unknown fit {self.fit!r}, known: {', '.join(FIT_MODES)}")
        if not 0 < self.centre <= 1:
            raise ConfigError(f"centre is {self.centre}, must be in (0, 1]")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}, need at least 1 image")


@dataclass(frozen=True)
class RungScore:
    """One line of the report.

    Attributes:
        start: "cold" (each image from zero) or "warm" (from the state of the frame before).
        evaluations: of f per image.
        steps: the precisions that they ran in, such as "4 fp32".
        value: mean IoU, or the share of right answers.
        balanced: for classification the mean over the classes of their share; else None.
        per_class: IoU or share per class; None where a class neither occurs nor is answered.
        residual: mean relative residual; None if a solve ended in NaN or infinity.
        card: what the model card has for the same start and count, if it does.
        precision: "fp32", "fp16", "int8" or "refined".
    """

    start: Start
    evaluations: int
    steps: str
    value: float
    balanced: float | None
    per_class: tuple[float | None, ...]
    residual: float | None
    card: float | None
    precision: str = "fp32"


@dataclass(frozen=True)
class ValReport:
    """The outcome of ``validate``.

    Attributes:
        bundle, split: what was scored, on which part of the data.
        metric: "miou" or "accuracy".
        images: how many were looked at.
        labels: a name per class.
        counts: labelled pixels, or images, per class.
        scores: one per rung and start, those from a cold start first.
        seconds: how long it took.
    """

    bundle: str
    split: str
    metric: Literal["miou", "accuracy"]
    images: int
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    scores: tuple[RungScore, ...]
    seconds: float


def validate(
    bundle: Path,
    data: Path,
    settings: ValSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ValReport:
    """Score the rungs of ``bundle`` on the dataset folder ``data``.

    Rungs take turns, so that memory holds one graph at a time, as on a stream.

    Args:
        bundle: ``NAME.mdeq``.
        data: a folder in the settings' layout.
        settings: what to score, and how the data is read.
        progress: called with (images answered, images in all) over all rungs.

    Raises:
        BundleError, SessionError, MissingExtraError: the bundle cannot be run, or not for so many
            evaluations.
        DataError: the data is missing, unreadable, or does not fit the bundle's classes.
        ConfigError: settings that make no sense for the bundle's task.
    """
    settings = settings or ValSettings()
    started = time.monotonic()
    opened = open_bundle(Path(bundle), require_signature=settings.require_signature)
    manifest = opened.manifest
    profile = opened.profile(PROFILE)
    if settings.precision is not None:
        profile = select(profile, settings.precision, manifest.name)
    chains = choose_chains(profile.rungs, settings.iterations)
    classes = class_count(manifest)
    images = open_images(manifest, Path(data), classes, settings)
    indices = choose_indices(len(images), settings.limit, consecutive=is_segmentation(manifest))
    total, done = len(chains) * len(indices), 0

    def answered() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    starts: tuple[Start, ...] = ("cold", "warm") if settings.warm else ("cold",)
    scores: list[RungScore] = []
    for chain in chains:
        with closing(OrtCpuBackend(opened, settings.threads)) as backend:
            tallies = [Tally(start, classes, backend.new_state()) for start in starts]
            run_chain(chain, backend, (images[k] for k in indices), tallies, answered)
        counts = tallies[0].confusion.sum(axis=1)
        if not counts.any():
            raise DataError(
                f"no pixel of {data} ({settings.split}) is labelled: every mask value is ignored; "
                "check --ignore"
            )
        scores += [score(tally, chain, manifest, settings) for tally in tallies]
    return ValReport(
        bundle=manifest.name,
        split=settings.split,
        metric="miou" if is_segmentation(manifest) else "accuracy",
        images=len(indices),
        labels=manifest.labels or tuple(f"class {k}" for k in range(classes)),
        counts=tuple(counts.tolist()),
        scores=tuple(sorted(scores, key=lambda score: score.start)),
        seconds=time.monotonic() - started,
    )


class Tally:
    """What one chain's answers from one start amount to."""

    def __init__(self, start: Start, classes: int, state: Any) -> None:
        self.start, self.state = start, state
        self.confusion: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)
        self.residuals: list[float] = []


def run_chain(
    chain: Chain,
    backend: Backend,
    items: Iterable[tuple[NDArray[np.uint8], Any]],
    tallies: Sequence[Tally],
    answered: Callable[[], None],
) -> None:
    """Answer every item from every start: images (3, H, W) with a mask (H, W) or a class."""
    for image, target in items:
        for tally in tallies:
            if tally.start == "cold":
                tally.state.reset()
            for rung in chain:
                found = backend.run(rung, image.transpose(1, 2, 0), tally.state)
            tally.residuals.append(found.residual)
            if isinstance(target, int):
                tally.confusion[target, int(found.output.argmax())] += 1
            else:
                classes = len(tally.confusion)
                tally.confusion += confusion_matrix(target, found.output, classes, IGNORED)
        answered()


def score(tally: Tally, chain: Chain, manifest: Manifest, settings: ValSettings) -> RungScore:
    """A tally's figures."""
    balanced = None
    if is_segmentation(manifest):
        per_class, value = mean_iou(tally.confusion)
    else:
        per_class, balanced, value = class_accuracy(tally.confusion)
    residual = float(np.mean(tally.residuals))
    steps = [step for rung in chain for step in rung.steps]
    count = sum(step.evaluations for step in steps)
    metric = "miou" if is_segmentation(manifest) else "accuracy"
    complete = settings.split == "val" and settings.limit is None
    return RungScore(
        start=tally.start,
        evaluations=count,
        steps=" + ".join(f"{step.evaluations} {step.precision}" for step in steps),
        precision=precision_of(Rung(tuple(steps), chain[-1].graph)),
        value=value,
        balanced=balanced,
        per_class=tuple(None if math.isnan(share) else share for share in per_class.tolist()),
        residual=residual if math.isfinite(residual) else None,
        card=manifest.metrics.get(f"{metric}_{tally.start}_{count}") if complete else None,
    )


def choose_chains(rungs: Sequence[Rung], iterations: Sequence[int]) -> list[Chain]:
    """Every rung by itself, or for each count the rungs that have it, else a chain that adds up.

    Raises:
        SessionError: no sum of rungs gives a count.
    """
    chains: list[Chain] = []
    for count in sorted(set(iterations) or {rung.evaluations for rung in rungs}):
        exact = [(rung,) for rung in rungs if rung.evaluations == count]
        chains += exact or [plan(whole(rungs), count)]
    return chains


def whole(rungs: Sequence[Rung]) -> Sequence[Rung]:
    """Rungs to make a chain of: where all precisions are looked at, those in full precision."""
    kinds = {precision_of(rung) for rung in rungs}
    if "int8" not in kinds or len(kinds) == 1:
        return rungs
    return [rung for rung in rungs if precision_of(rung) == "fp32"]


def choose_indices(total: int, limit: int | None, consecutive: bool) -> list[int]:
    """Which images to look at: the first ones, or evenly spaced where they are sorted by class."""
    count = min(total, limit or total)
    return [k if consecutive else k * total // count for k in range(count)]


def open_images(manifest: Manifest, data: Path, classes: int, settings: ValSettings) -> Dataset:
    """The split, read image by image.

    Raises:
        ConfigError: a layout or a start that is not for the bundle's task.
        DataError: it cannot be used, or has other classes than the bundle.
    """
    task, segmentation = manifest.task, is_segmentation(manifest)
    layouts = [name for name in LAYOUTS if (name in SEGMENTATION_LAYOUTS) == segmentation]
    layout: Any = settings.layout or layouts[0]
    if layout not in layouts:
        raise ConfigError(
            f"layout {layout!r} is not for {task}, which {manifest.name} is for; choose "
            f"{' or '.join(layouts)}"
        )
    if settings.warm and not segmentation:
        raise ConfigError(
            f"warm starts carry the state from frame to frame; {manifest.name} classifies images "
            "that have no order, leave --warm out"
        )
    config = DataConfig(
        layout=layout,
        ignore=tuple(settings.ignore),
        fit=settings.fit,
        centre=settings.centre,
        grey=settings.grey,
        cache=False,
    )
    if segmentation:
        return open_segmentation(config, data, settings.split, classes, manifest.input.size)
    images = open_classification(
        config, data, settings.split, classes, manifest.labels, manifest.input.size
    )
    if manifest.labels and images.labels != manifest.labels:
        raise DataError(
            f"{data} has the classes {', '.join(images.labels)}; {manifest.name} answers "
            f"{', '.join(manifest.labels)}: choose data of the same classes in the same order"
        )
    return images


def class_count(manifest: Manifest) -> int:
    """How many classes a bundle answers; masks of one that names none may hold any."""
    if is_segmentation(manifest):
        return len(manifest.labels) or MOST_CLASSES
    return manifest.output.tensor.shape[-1]


def is_segmentation(manifest: Manifest) -> bool:
    """Whether answers are masks."""
    return manifest.task == "segmentation"
