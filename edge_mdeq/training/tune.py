"""Shapes given weights for few iterations: they learn to answer after K evaluations of f what they
answered when converged.

The weights are their own teacher. With t the teacher's converged answer to an image, the student is
trained on three answers of its own at once:

- cold: K tracked evaluations from zero;
- warm: fewer, from its equilibrium for a slightly moved picture, as a camera sees them in turn;
- far: some more untracked evaluations and a tracked one, so that its equilibrium stays an answer.

Each should match t (Kullback-Leibler divergence, in which a pixel weighs as much as the classes
that t gives it) and the label, and the first two should already be where the third ends up. On a
share of the steps the Jacobian there is regularised (arXiv:2106.14342). Batch norms keep the
statistics they have.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_mdeq.config import ModelCard
from edge_mdeq.errors import ConfigError
from edge_mdeq.files import replacing, write_atomic
from edge_mdeq.gradients import jacobian_penalty, phantom
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import FixedPoint, solve
from edge_mdeq.training.equilibrium import normalise, upsample
from edge_mdeq.training.log import writing
from edge_mdeq.training.objective import Objective, make_objective
from edge_mdeq.training.recipe import (
    AugmentConfig,
    DataConfig,
    FinishConfig,
    GradientConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    SolverConfig,
    read_recipe,
)
from edge_mdeq.training.run import Progress, Run, make_fabric, open_folder
from edge_mdeq.weights import load_card, load_weights, resolve_weights, save_weights

__all__ = ["TuneReport", "TuneSettings", "choose_recipe", "tune"]

WEIGHTS = "weights.safetensors"
DEFAULT_OPTIM = OptimConfig(
    name="muon", epochs=24, batch=8, lr=1.5e-3, warmup_steps=30, ema_decay=0.99, freeze_norm=True
)
MOVED = {"degrees": 1.5, "translate": (0.04, 0.04), "scale": (0.94, 1.06)}  # frame to frame


@dataclass(frozen=True)
class TuneSettings:
    """What to shape the weights for, and how the losses weigh.

    Attributes:
        iterations: K, evaluations from a cold start that should suffice.
        warm: evaluations that should suffice from the last frame's equilibrium; 0: half of K.
        reference: evaluations of the teacher's answer at most; it stops at ``tol``.
        tol: relative residual at which the teacher counts as converged.
        far: (fewest, most) untracked evaluations after the K.
        label: weight of the labels' loss beside the teacher's.
        cold_weight, warm_weight, far_weight: how much each answer counts. The cold one is the
            hardest to get right.
        agree: weight of the distance to the student's own equilibrium.
        jacobian, frequency: weight of the Jacobian penalty, and on which share of the steps.
    """

    iterations: int
    warm: int = 0
    reference: int = 26
    tol: float = 1e-2
    far: tuple[int, int] = (2, 10)
    label: float = 0.3
    cold_weight: float = 3.0
    warm_weight: float = 1.0
    far_weight: float = 2.0
    agree: float = 0.5
    jacobian: float = 1.0
    frequency: float = 0.3

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.reference <= self.iterations:
            raise ConfigError(
                f"iterations is {self.iterations}, must be between 1 and the reference's "
                f"{self.reference}"
            )
        if self.warm < 0:
            raise ConfigError(f"warm is {self.warm}, need at least 0")
        for name, weight in {"label": self.label, **self.weights}.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(
                    f"the weight of {name!r} is {weight}, must be at least 0 and finite"
                )
        if self.warm == 0:
            object.__setattr__(self, "warm", max(1, self.iterations // 2))

    @property
    def weights(self) -> dict[str, float]:
        """How much each answer counts, by its name."""
        return {"cold": self.cold_weight, "warm": self.warm_weight, "far": self.far_weight}

    @property
    def counts(self) -> tuple[int, ...]:
        """Evaluation counts worth reporting."""
        usual = (1, 2, 3, 4, 8, self.reference)
        return tuple(sorted({*usual, self.warm, self.iterations}))


@dataclass(frozen=True)
class TuneReport:
    """The headline metric by "cold_N" and "warm_N", before and after."""

    metric: str
    iterations: int
    warm: int
    reference: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def drop(self) -> float:
        """What the tuned weights lost when converged; negative if they gained."""
        key = f"cold_{self.reference}"
        return self.before[key] - self.after[key]


def choose_recipe(
    weights: Path,
    path: Path | None = None,
    layout: str | None = None,
    ignore: Sequence[int] = (255,),
    epochs: int | None = None,
    lr: float | None = None,
    batch: int | None = None,
    seed: int | None = None,
) -> Recipe:
    """Data, augmentation, loss and optimizer of a tuning run.

    From the recipe file at ``path`` if given, else what suits most; model and input are the card's,
    and what is given here goes before both.

    Raises:
        WeightsError, ConfigError: the card or the recipe cannot be read, or makes no sense.
    """
    card = load_card(weights)
    recipe = default_recipe(card, layout, ignore) if path is None else read_recipe(path)
    optim = replace(
        recipe.optim,
        epochs=epochs or (DEFAULT_OPTIM.epochs if path is None else recipe.optim.epochs),
        lr=lr or recipe.optim.lr,
        batch=batch or recipe.optim.batch,
    )
    return replace(
        recipe,
        model=card.model,
        input=card.input,
        optim=optim,
        solver=SolverConfig(),  # the plain iteration is what is tuned, and scored
        gradient=GradientConfig(),
        finish=FinishConfig(),
        seed=recipe.seed if seed is None else seed,
    )


def default_recipe(card: ModelCard, layout: str | None, ignore: Sequence[int]) -> Recipe:
    """What suits most: the layout that goes with the task, and the augmentation of the samples."""
    segmentation = card.model.task == "segmentation"
    data = DataConfig(
        layout=layout or ("camvid" if segmentation else "folder"),  # type: ignore[arg-type]
        labels=card.labels,
        ignore=tuple(ignore),
    )
    if segmentation:  # the card's names and colours are kept, and these not seen, if it has any
        names = tuple(f"class {k}" for k in range(card.model.classes))
        data = replace(
            data, labels=card.labels or names, palette=card.palette or ((0, 0, 0),) * len(names)
        )
        return Recipe(card.model, card.input, data, DEFAULT_OPTIM)
    augment = AugmentConfig(scale=(0.4, 1.0), ratio=(0.6, 1.2))
    loss = LossConfig(class_weights="none", lovasz=0.0)
    return Recipe(card.model, card.input, data, DEFAULT_OPTIM, augment=augment, loss=loss)


def tune(
    weights: Path,
    data: Path,
    out: Path,
    settings: TuneSettings,
    recipe: Recipe,
    resume: bool = False,
    devices: int | None = None,
    precision: str = "32-true",
    progress: Progress = lambda done, total, figures: None,
) -> TuneReport:
    """Fine-tune ``weights`` so that ``settings.iterations`` evaluations suffice.

    ``out`` receives a checkpoint and logs as training does, and in the end
    ``weights.safetensors`` with its card, ``tune.json`` and the plot ``tune.svg``.

    Args:
        weights: ``.safetensors`` file with its card, or their folder; left as they are.
        data: a labelled dataset folder, training and validation split.
        out: created if needed.
        settings: what to shape for.
        recipe: data, augmentation, loss and optimizer, from ``choose_recipe``.
        resume, devices, precision, progress: as for ``train``.

    Raises:
        WeightsError, DataError, ConfigError: bad input; the given weights stay as they are.
    """
    model, card = load_weights(weights)
    if resolve_weights(weights)[0].resolve() == (out / WEIGHTS).resolve():
        raise ConfigError(f"{out} holds the weights to tune; choose another folder for the tuned")
    open_folder(out, resume)
    objective = make_objective(recipe, data)
    fabric = make_fabric(devices, precision)
    teacher = model.freeze().to(fabric.device)
    model = model.to(fabric.device)
    task = TuneTask(model, teacher, recipe, settings)
    run = Run(fabric, model, task, recipe, objective, out, aims=asdict(settings))
    if resume:
        run.restore()
    move = K.RandomAffine(**MOVED, padding_mode="border", p=1.0)

    def losses(image: Tensor, target: Tensor, step: int, count: Tensor) -> dict[str, Tensor]:
        drawn = draw(settings, recipe.seed, step)
        found = run.task(image, move(image), drawn)
        figures = {}
        for name, weight in settings.weights.items():
            logits = found[name].float()
            loss = divergence(logits, found["target"], objective.weights)
            if logits.ndim == 4:
                logits = upsample(logits, image.shape[2:])
            labelled = objective.loss(logits, target, count)
            figures[name] = weight * (loss + settings.label * labelled)
        total = torch.stack(list(figures.values())).sum()
        total = total + settings.agree * found["agree"] + drawn.penalty * found["penalty"]
        return figures | {"agree": found["agree"], "loss": total, "total": total}

    run.go(losses, lambda: objective.score(run.average, settings.iterations), progress)
    report = compare(load_weights(weights)[0], run.average, objective, settings)
    if fabric.global_rank == 0:
        write(out, run.average, card, report)
    fabric.barrier()
    return report


class Draw(NamedTuple):
    """What one step draws: evaluations beyond the K, and the weight of the penalty."""

    far: int
    penalty: float


def draw(settings: TuneSettings, seed: int, step: int) -> Draw:
    """The draw of a step; decided by seed and step alone."""
    rng = random.Random(f"tune-{seed}-{step}")
    penalise = rng.random() < settings.frequency
    return Draw(rng.randint(*settings.far), settings.jacobian if penalise else 0.0)


class TuneTask(nn.Module):
    """A batch's answers; the part that runs under Fabric."""

    def __init__(self, model: MDEQ, teacher: MDEQ, recipe: Recipe, settings: TuneSettings) -> None:
        super().__init__()
        self.model = model
        self.teacher = [teacher]  # in a list: its weights are none of this module's
        self.recipe, self.settings = recipe, settings

    def forward(self, image: Tensor, moved: Tensor, drawn: Draw) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in 0..1, and the same slightly moved.

        Returns:
            Logits as the readout gives them: the teacher's "target", the student's "cold", "warm"
            and "far"; and the scalars "agree" and "penalty".
        """
        model, settings = self.model, self.settings
        u = model.inject(normalise(image, self.recipe.input))
        f = model.bind(u)
        cold = phantom(f, model.zero_state(u), settings.iterations)
        with torch.no_grad():
            near = iterate(f, cold, drawn.far)
            u_moved = model.inject(normalise(moved, self.recipe.input))
            start = model.zero_state(u_moved)
            last = iterate(model.bind(u_moved), start, settings.iterations + drawn.far)
        far = f(near)
        warm = phantom(f, last, settings.warm)
        goal = tuple(z.detach() for z in far)
        penalty = jacobian_penalty(f, far) if drawn.penalty else torch.zeros((), device=u.device)
        return {
            "target": self.converged(image),
            "cold": model.readout(cold),
            "warm": model.readout(warm),
            "far": model.readout(far),
            "agree": distance(cold, goal) + distance(warm, goal),
            "penalty": penalty,
        }

    @torch.no_grad()
    def converged(self, image: Tensor) -> Tensor:
        """The teacher's converged logits."""
        teacher, settings = self.teacher[0], self.settings
        u = teacher.inject(normalise(image, self.recipe.input))
        f, z = teacher.bind(u), teacher.zero_state(u)
        solution = solve(f, z, FixedPoint(), settings.reference, settings.tol)
        logits: Tensor = teacher.readout(solution.value)
        return logits


def iterate(f: Callable[[State], State], z: State, count: int) -> State:
    """``count`` plain evaluations."""
    for _ in range(count):
        z = f(z)
    return z


def distance(z: State, goal: State) -> Tensor:
    """Mean over the batch of ||z - goal||^2 / ||goal||^2 over all scales."""
    flat, wanted = (torch.cat([x.float().flatten(1) for x in s], dim=1) for s in (z, goal))
    return ((flat - wanted).square().sum(dim=1) / wanted.square().sum(dim=1)).mean()


def divergence(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """KL(target || logits) of class distributions (B, classes, ...), mean over all else.

    With ``weights`` (classes,) the mean is weighted: an entry counts as much as the weights of its
    target's classes say, so that rare classes are not lost among the others.
    """
    have, want = F.log_softmax(logits, dim=1), F.log_softmax(target.float(), dim=1)
    entries = (want.exp() * (want - have)).sum(dim=1)
    if weights is None:
        return entries.mean()
    each = weights.to(entries.device).reshape(1, -1, *[1] * (entries.ndim - 1))
    share = (want.exp() * each).sum(dim=1)
    return (entries * share).sum() / share.sum()


def compare(untuned: MDEQ, tuned: MDEQ, objective: Objective, settings: TuneSettings) -> TuneReport:
    """Score both at every count."""

    def curve(model: MDEQ) -> dict[str, float]:
        found = objective.curve(model, settings.counts)
        return {key.removeprefix(f"{objective.headline}_"): value for key, value in found.items()}

    return TuneReport(
        objective.headline,
        settings.iterations,
        settings.warm,
        settings.reference,
        before=curve(untuned),
        after=curve(tuned),
    )


def write(out: Path, model: MDEQ, card: ModelCard, report: TuneReport) -> None:
    """Weights with their card, the report, and its plot."""
    metrics = {f"{report.metric}_{key}": round(value, 4) for key, value in report.after.items()}
    provenance = replace(
        card.provenance,
        notes=f"{card.provenance.notes} Tuned for {report.iterations} evaluations, "
        f"{report.warm} from a warm start.".strip(),
    )
    card = replace(card, metrics=metrics, provenance=provenance)
    save_weights(model, card, out / WEIGHTS)
    with writing(out):
        write_atomic(out / "tune.json", json.dumps(asdict(report), indent=2).encode())
        plot(report, out / "tune.svg")


def plot(report: TuneReport, path: Path) -> None:
    """Before and after over the number of evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for start, marker in (("cold", "o"), ("warm", "s")):
        for name, values, colour in (
            ("before", report.before, "#999999"),
            ("after", report.after, "#0072b2"),
        ):
            points = {
                int(key.removeprefix(f"{start}_")): value
                for key, value in values.items()
                if key.startswith(start)
            }
            if points:
                style = "-" if start == "cold" else "--"
                axes.plot(
                    *zip(*sorted(points.items()), strict=True),
                    f"{marker}{style}",
                    color=colour,
                    label=f"{name}, {start}",
                )
    counts = sorted({int(key.split("_")[1]) for key in report.after})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("evaluations of f")
    axes.set_ylabel(report.metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
