"""A training run as a TOML file: everything that decides its outcome but the data itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from edge_mdeq.config import InputConfig, ModelConfig, Provenance, convert
from edge_mdeq.errors import ConfigError

__all__ = ["Recipe", "read_recipe"]


@dataclass(frozen=True)
class DataConfig:
    """Labels of a dataset in the CamVid layout; mask values in ``ignore`` count nowhere."""

    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: tuple[int, ...] = (255,)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine to zero; weights are averaged over time."""

    epochs: int
    batch: int = 6
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.998


@dataclass(frozen=True)
class SolverConfig:
    """The forward solve: how it starts, and how long it runs once it is an equilibrium.

    During the first ``unrolled_epochs`` the iteration is simply unrolled and tracked for
    ``unrolled_steps``; afterwards each step draws its evaluations from ``evaluations`` (both ends
    included), so that no single count is special.
    """

    name: Literal["fixed_point", "anderson"] = "fixed_point"
    unrolled_epochs: int = 5
    unrolled_steps: int = 4
    evaluations: tuple[int, int] = (4, 8)


@dataclass(frozen=True)
class GradientConfig:
    """``phantom``: ``steps`` damped by ``tau``. ``implicit``: a solve of ``steps`` to ``tol``."""

    kind: Literal["phantom", "implicit"] = "phantom"
    steps: int = 3
    tau: float = 1.0
    tol: float = 1e-3


@dataclass(frozen=True)
class JacobianConfig:
    """Jacobian regularisation: its weight, and on which share of the steps it is applied."""

    weight: float = 1.0
    frequency: float = 0.3
    samples: int = 1


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
    """Cross entropy plus ``lovasz`` times Lovasz-softmax (a surrogate of mean IoU).

    ``class_weights``: "none", or "sqrt" for one over the square root of a class's frequency.
    """

    class_weights: Literal["none", "sqrt"] = "sqrt"
    lovasz: float = 0.5


@dataclass(frozen=True)
class AugmentConfig:
    """Random crop of ``scale`` of the area, mirrored half the time, with jittered colours."""

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (1.15, 1.55)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05


@dataclass(frozen=True)
class ValidationConfig:
    """Every how many epochs to validate, and at which evaluation counts at the end."""

    every: int = 5
    evaluations: int = 8
    curve: tuple[int, ...] = (1, 2, 3, 4, 8, 16)


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
        if self.model.task != "segmentation":
            raise ConfigError("recipe: only segmentation can be trained so far")
        if len(self.data.labels) != self.model.classes:
            raise ConfigError(
                f"recipe: data.labels has {len(self.data.labels)} entries, the model has "
                f"{self.model.classes} classes"
            )
        if len(self.data.palette) != self.model.classes:
            raise ConfigError("recipe: data.palette needs one RGB colour per class")
        if self.optim.epochs < 1 or self.optim.batch < 1:
            raise ConfigError("recipe: optim.epochs and optim.batch must be at least 1")
        for name, (low, high) in (
            ("solver", self.solver.evaluations),
            ("finish", self.finish.evaluations),
        ):
            if not 1 <= low <= high:
                raise ConfigError(f"recipe: {name}.evaluations {low}..{high} is not a range")
        positive = {  # found out here, not by a crash after hours of training
            "solver.unrolled_steps": self.solver.unrolled_steps,
            "gradient.steps": self.gradient.steps,
            "jacobian.samples": self.jacobian.samples,
            "validation.every": self.validation.every,
            "validation.evaluations": self.validation.evaluations,
            "validation.curve": min(self.validation.curve, default=1),
        }
        for name, value in positive.items():
            if value < 1:
                raise ConfigError(f"recipe: {name} holds {value}, must be at least 1")

    @property
    def epochs(self) -> int:
        """All epochs of the run."""
        return self.optim.epochs + self.finish.epochs


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
