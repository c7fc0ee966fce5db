"""A training run as a TOML file: everything that decides its outcome but the data itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from edge_mdeq.config import InputConfig, ModelConfig, Provenance, convert
from edge_mdeq.datasets import LAYOUTS, SEGMENTATION_LAYOUTS, DataConfig
from edge_mdeq.errors import ConfigError

__all__ = ["DataConfig", "Recipe", "read_recipe"]

SolverName = Literal["fixed_point", "anderson", "broyden"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, with a linear warm-up and a cosine to ``final_lr`` over all steps.

    Attributes:
        epochs: passes over the training split.
        batch: images per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per optimizer step, so that a large batch fits a small memory.
        name: "adamw", "adam", "sgd" (with ``momentum``, Nesterov's if ``nesterov``) or "muon" (for
            the inner kernels, AdamW for the rest, at one learning rate; see ``muon``).
        lr, final_lr: learning rate after the warm-up and at the end.
        weight_decay: of the kernels; ``decay_all`` includes gains and biases, as published.
        clip_norm: largest gradient norm, 0 for no limit.
        ema_decay: the weights kept are an exponential average; 0 keeps the last ones.
        freeze_norm: batch norms keep their statistics (fine-tuning with small batches).
    """

    epochs: int
    batch: int = 6
    accumulate: int = 1
    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    lr: float = 1e-3
    final_lr: float = 0.0
    weight_decay: float = 0.01
    decay_all: bool = False
    momentum: float = 0.9
    nesterov: bool = False
    warmup_steps: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    freeze_norm: bool = False


@dataclass(frozen=True)
class SolverConfig:
    """The forward solve: how it starts, and how long it runs once it is an equilibrium.

    During the first ``pretrain_steps`` optimizer steps the iteration is unrolled and tracked for
    ``pretrain_evaluations`` (the published code's warm-up); afterwards each step draws its
    evaluations from ``evaluations`` (both ends included), so that no single count is special, and
    stops before at a residual of ``tol`` if that is not 0. ``best`` goes on from the iterate with
    the lowest residual instead of the last. ``m`` is how much of the past Anderson and Broyden
    keep, 0 for their default. Validation uses the same solver, without a tolerance.
    """

    name: SolverName = "fixed_point"
    pretrain_steps: int = 300
    pretrain_evaluations: int = 4
    evaluations: tuple[int, int] = (4, 8)
    tol: float = 0.0
    stop_mode: Literal["rel", "abs"] = "rel"
    best: bool = False
    m: int = 0


@dataclass(frozen=True)
class GradientConfig:
    """How the gradient passes the equilibrium.

    ``phantom``: ``steps`` damped by ``tau``. ``implicit``: a solve of at most ``steps`` products by
    ``solver`` ("" for the forward one), which keeps ``m`` of the past, 0 for its default, until
    ||y J + g - y|| <= ``tol`` ||g|| for the loss's gradient g. ``recompute`` trades time
    for memory: the cell's branches are computed again in the backward pass.
    """

    kind: Literal["phantom", "implicit"] = "phantom"
    steps: int = 3
    tau: float = 1.0
    tol: float = 1e-3
    solver: Literal["", "fixed_point", "anderson", "broyden"] = ""
    m: int = 0
    recompute: bool = False


@dataclass(frozen=True)
class JacobianConfig:
    """Jacobian regularisation (arXiv:2106.14342): its weight, and on which share of the steps.

    The weight is ``pretrain_weight`` while the iteration is unrolled, ``weight`` afterwards, and
    grows by ``growth`` every ``growth_steps`` of these; from ``stop_epoch`` on it is 0 (0: never).
    A step that is regularised draws its evaluations from a range moved by ``jitter``.
    """

    weight: float = 1.0
    frequency: float = 0.3
    samples: int = 1
    pretrain_weight: float = 0.0
    growth: float = 0.0
    growth_steps: int = 50_000
    stop_epoch: int = 0
    jitter: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class FinishConfig:
    """A last phase for few iterations: short solves, more regularisation, a small learning rate.

    It comes after ``optim.epochs`` and lasts ``epochs``; the learning rate starts at ``lr`` and
    follows a cosine of its own to zero.
    """

    epochs: int = 0
    lr: float = 2e-4
    evaluations: tuple[int, int] = (1, 4)
    jacobian_frequency: float = 0.5


@dataclass(frozen=True)
class LossConfig:
    """Cross entropy, plus ``lovasz`` times Lovasz-softmax (a surrogate of mean IoU) on masks.

    ``class_weights``: "none", "sqrt" for one over the square root of a class's frequency, or a
    number per class.
    """

    class_weights: Literal["none", "sqrt"] | tuple[float, ...] = "sqrt"
    lovasz: float = 0.5
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class AugmentConfig:
    """Random crop of ``scale`` of the area, mirrored half the time, with jittered colours.

    ``pad`` above 0 takes instead a crop of the input's size out of the fitted image padded by so
    many pixels, as is usual for CIFAR (classification only).

    ``zoom`` above 0 takes instead a crop out of the image enlarged by a factor from this range, and
    padded where it is too small, as is usual for Cityscapes; ``crop`` is the crop's height and
    width where training sees less than the input (segmentation only).
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (1.15, 1.55)
    pad: int = 0
    zoom: tuple[float, float] = (0.0, 0.0)
    crop: tuple[int, int] = (0, 0)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05


@dataclass(frozen=True)
class ValidationConfig:
    """Every how many epochs to validate, and at which evaluation counts at the end.

    ``spectral_images`` above 0 also logs the spectral radius of f's Jacobian at the equilibria of
    so many validation images.
    """

    every: int = 5
    evaluations: int = 8
    curve: tuple[int, ...] = (1, 2, 3, 4, 8, 16)
    spectral_images: int = 0


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    model: ModelConfig
    input: InputConfig
    data: DataConfig
    optim: OptimConfig
    solver: SolverConfig = field(default_factory=SolverConfig)
    gradient: GradientConfig = field(default_factory=GradientConfig)
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    finish: FinishConfig = field(default_factory=FinishConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    provenance: Provenance = field(default_factory=Provenance)
    seed: int = 0

    def __post_init__(self) -> None:
        self.model.check_size(self.input.height, self.input.width)
        check_data(self.data, self.model)
        check_limits(self)
        check_solvers(self)
        check_loss(self.loss, self.model)
        check_crops(self.augment, self.model)
        optim, jacobian, first = self.optim, self.jacobian, self.solver.evaluations[0]
        if optim.batch % optim.accumulate:
            raise ConfigError(
                f"recipe: optim.accumulate {optim.accumulate} does not divide optim.batch "
                f"{optim.batch}"
            )
        if optim.nesterov and optim.momentum == 0:
            raise ConfigError("recipe: optim.nesterov needs an optim.momentum above 0")
        for name, (low, high) in {
            "solver.evaluations": self.solver.evaluations,
            "finish.evaluations": self.finish.evaluations,
            "jacobian.jitter": jacobian.jitter,
            "augment.scale": self.augment.scale,
            "augment.ratio": self.augment.ratio,
            "augment.zoom": self.augment.zoom,
        }.items():
            if low > high:
                raise ConfigError(f"recipe: {name} {low}..{high} is not a range")
        if first + jacobian.jitter[0] < 1:
            raise ConfigError(
                f"recipe: jacobian.jitter {jacobian.jitter[0]} leaves fewer than one of "
                f"solver.evaluations {first}"
            )

    @property
    def epochs(self) -> int:
        """All epochs of the run."""
        return self.optim.epochs + self.finish.epochs


LONGEST_HISTORY = {"fixed_point": 0, "anderson": 6, "broyden": math.inf}
AT_LEAST_1 = (1.0, math.inf)
AT_LEAST_0 = (0.0, math.inf)
SHARE = (0.0, 1.0)
# Smallest and largest value of a number, or of each in a list: found out here, not by a crash after
# hours of training.
LIMITS: dict[str, tuple[float, float]] = {
    "data.workers": AT_LEAST_0,
    "optim.epochs": AT_LEAST_1,
    "optim.batch": AT_LEAST_1,
    "optim.accumulate": AT_LEAST_1,
    "optim.lr": AT_LEAST_0,
    "optim.final_lr": AT_LEAST_0,
    "optim.weight_decay": AT_LEAST_0,
    "optim.momentum": SHARE,
    "optim.warmup_steps": AT_LEAST_0,
    "optim.clip_norm": AT_LEAST_0,
    "optim.ema_decay": SHARE,
    "solver.pretrain_steps": AT_LEAST_0,
    "solver.pretrain_evaluations": AT_LEAST_1,
    "solver.evaluations": AT_LEAST_1,
    "solver.tol": AT_LEAST_0,
    "solver.m": AT_LEAST_0,
    "gradient.steps": AT_LEAST_1,
    "gradient.tau": (0.01, 1.0),
    "gradient.tol": AT_LEAST_0,
    "gradient.m": AT_LEAST_0,
    "jacobian.weight": AT_LEAST_0,
    "jacobian.frequency": SHARE,
    "jacobian.samples": AT_LEAST_1,
    "jacobian.pretrain_weight": AT_LEAST_0,
    "jacobian.growth_steps": AT_LEAST_1,
    "jacobian.stop_epoch": AT_LEAST_0,
    "finish.epochs": AT_LEAST_0,
    "finish.lr": AT_LEAST_0,
    "finish.evaluations": AT_LEAST_1,
    "finish.jacobian_frequency": SHARE,
    "loss.lovasz": AT_LEAST_0,
    "loss.label_smoothing": SHARE,
    "augment.scale": (0.01, 1.0),
    "augment.ratio": (0.01, 100.0),
    "augment.pad": AT_LEAST_0,
    "augment.zoom": (0.0, 100.0),
    "augment.crop": AT_LEAST_0,
    "augment.flip": SHARE,
    "augment.brightness": SHARE,
    "augment.contrast": SHARE,
    "augment.saturation": SHARE,
    "augment.hue": (0.0, 0.5),
    "validation.every": AT_LEAST_1,
    "validation.evaluations": AT_LEAST_1,
    "validation.curve": AT_LEAST_1,
    "validation.spectral_images": AT_LEAST_0,
}


def check_limits(recipe: Recipe) -> None:
    """Raise ConfigError for the first number outside ``LIMITS``, or that is none."""
    for name, (low, high) in LIMITS.items():
        section, key = name.split(".")
        value = getattr(getattr(recipe, section), key)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high or math.isinf(number):
                most = "" if math.isinf(high) else f" and at most {high:g}"
                raise ConfigError(f"recipe: {name} holds {number}, must be at least {low:g}{most}")


def check_solvers(recipe: Recipe) -> None:
    """Raise ConfigError where a solver is given a history that it cannot keep."""
    forward, backward = recipe.solver, recipe.gradient
    for section, name, m in (
        ("solver", forward.name, forward.m),
        ("gradient", backward.solver or forward.name, backward.m),
    ):
        if m > LONGEST_HISTORY[name]:
            raise ConfigError(
                f"recipe: {section}.m is {m}, {name} keeps at most {LONGEST_HISTORY[name]:g}"
            )


def check_loss(loss: LossConfig, model: ModelConfig) -> None:
    """Raise ConfigError unless given weights are one positive number per class."""
    weights = loss.class_weights
    if isinstance(weights, str):
        return
    if len(weights) != model.classes:
        raise ConfigError(
            f"recipe: loss.class_weights has {len(weights)} entries, the model has "
            f"{model.classes} classes"
        )
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ConfigError(f"recipe: loss.class_weights holds {weight}, must be positive")


def check_crops(augment: AugmentConfig, model: ModelConfig) -> None:
    """Raise ConfigError where crops do not suit the task or the model."""
    for name, pair in (("zoom", augment.zoom), ("crop", augment.crop)):
        if any(pair) and model.task != "segmentation":
            raise ConfigError(f"recipe: augment.{name} is for segmentation, remove it")
        if any(pair) and not all(pair):
            raise ConfigError(f"recipe: augment.{name} holds 0, must be above at both ends")
    if any(augment.crop):
        try:
            model.check_size(*augment.crop)
        except ConfigError as error:
            raise ConfigError(f"recipe: augment.crop: {error}") from error


def check_data(data: DataConfig, model: ModelConfig) -> None:
    """Raise ConfigError where the data's layout and labels do not suit the model's task."""
    if data.layout not in LAYOUTS:
        raise ConfigError(f"recipe: data.layout {data.layout!r} is none of {', '.join(LAYOUTS)}")
    segmentation = data.layout in SEGMENTATION_LAYOUTS
    if segmentation != (model.task == "segmentation"):
        raise ConfigError(f"recipe: data.layout {data.layout!r} is not for {model.task}")
    if (segmentation or data.labels) and len(data.labels) != model.classes:
        raise ConfigError(
            f"recipe: data.labels has {len(data.labels)} entries, the model has "
            f"{model.classes} classes"
        )
    if segmentation and len(data.palette) != model.classes:
        raise ConfigError("recipe: data.palette needs one RGB colour per class")
    if not 0 < data.centre <= 1:
        raise ConfigError(f"recipe: data.centre is {data.centre}, must be in (0, 1]")


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises:
        ConfigError: the file is missing, is not TOML, or a field is missing, unknown or senseless.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    try:
        recipe: Recipe = convert(msgspec.toml.decode(raw), Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return recipe
