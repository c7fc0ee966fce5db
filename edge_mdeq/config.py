"""What a model is, in numbers: the config that lies beside every weights file. No torch here.

The architecture is that of "Multiscale Deep Equilibrium Models" (Bai, Koltun, Kolter,
arXiv:2006.08656); the field names follow the paper and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edge_mdeq.errors import ConfigError, WeightsError

__all__ = [
    "InputConfig",
    "ModelCard",
    "ModelConfig",
    "Provenance",
    "decode_card",
    "encode_card",
    "read_card",
    "write_card",
]

Task = Literal["classification", "segmentation"]

T = TypeVar("T")

FORMAT = "edge-mdeq-model"
FORMAT_VERSION = 1
MOST_SCALES, LARGEST = 16, 2**16  # so that no tensor of a stranger's config overflows its size


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one MDEQ.

    Attributes:
        task: which readout the model ends in.
        classes: number of classes.
        channels: C_i, channels of each scale, finest first; its length is the number of scales n.
        expansion: E, width of the inner convolution of a residual block, in multiples of C_i.
        groups: groups of every GroupNorm inside f (the one after the post-fuse has half as many).
        downsample_times: strided convolutions in the stem; scale 0 lives at 1/2**this.
        head_channels: h_i, bottleneck widths of the classification readout.
        final_channels: F, features before the classifier.
        post_norm_affine: whether the GroupNorm that f ends in has a gain and a bias.
        dropout: rate of the variational dropout inside f; only training uses it.
        norm_momentum: momentum of the batch norms outside f (0.1 classification, 0.01
            segmentation in the published code).
    """

    task: Task
    classes: int
    channels: tuple[int, ...]
    expansion: int = 5
    groups: int = 8
    downsample_times: int = 2
    head_channels: tuple[int, ...] = ()
    final_channels: int = 0
    post_norm_affine: bool = True
    dropout: float = 0.0
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        def check(ok: bool, message: str) -> None:
            if not ok:
                raise ConfigError(f"model config: {message}")

        check(self.task in ("classification", "segmentation"), f"unknown task {self.task!r}")
        check(self.classes >= 2, f"classes is {self.classes}, need at least 2")
        if self.task == "segmentation":
            check(
                self.classes <= 255,
                f"classes is {self.classes}; masks are uint8 and 255 means 'ignored'",
            )
        check(len(self.channels) >= 1, "channels is empty, need one entry per scale")
        widest = max(*self.channels, *self.head_channels, self.classes, self.final_channels)
        check(
            widest <= LARGEST and len(self.channels) <= MOST_SCALES and self.expansion <= LARGEST,
            f"more than {MOST_SCALES} scales, or a width beyond {LARGEST}: no machine holds it",
        )
        check(self.groups >= 2 and self.groups % 2 == 0, f"groups is {self.groups}, must be even")
        for scale, width in enumerate(self.channels):
            check(
                width > 0 and width % self.groups == 0,
                f"channels[{scale}] is {width}, must be a positive multiple of groups "
                f"({self.groups})",
            )
        check(self.expansion >= 1, f"expansion is {self.expansion}, must be at least 1")
        check(
            0 <= self.downsample_times <= 2,
            f"downsample_times is {self.downsample_times}, must be 0, 1 or 2",
        )
        check(0.0 <= self.dropout < 1.0, f"dropout is {self.dropout}, must be in [0, 1)")
        check(0.0 < self.norm_momentum <= 1.0, f"norm_momentum is {self.norm_momentum}")
        if self.task == "classification":
            check(
                len(self.head_channels) == len(self.channels)
                and all(width > 0 for width in self.head_channels),
                f"head_channels is {list(self.head_channels)}, a classifier needs one positive "
                f"entry per scale ({len(self.channels)})",
            )
            check(self.final_channels > 0, "final_channels must be positive for a classifier")

    @property
    def scales(self) -> int:
        """n, the number of scales."""
        return len(self.channels)

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this, 2**(downsample_times + n - 1)."""
        return int(2 ** (self.downsample_times + self.scales - 1))

    @property
    def has_injection_transform(self) -> bool:
        """Whether a 1x1 convolution stands between stem and injection (absent in CIFAR-tiny)."""
        return not (self.downsample_times == 0 and self.scales <= 2)

    def state_shapes(self, batch: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Shapes (B, C_i, H_i, W_i) of the state for an input of ``height`` x ``width`` pixels.

        Raises:
            ConfigError: the size is not a positive multiple of the model's stride.
        """
        self.check_size(height, width)
        return [
            (
                batch,
                channels,
                height >> (self.downsample_times + i),
                width >> (self.downsample_times + i),
            )
            for i, channels in enumerate(self.channels)
        ]

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError unless height and width are positive multiples of the stride."""
        for name, value in (("height", height), ("width", width)):
            if value <= 0 or value % self.stride:
                low = max(self.stride, value // self.stride * self.stride)
                raise ConfigError(
                    f"image {name} {value} is not a multiple of the model's stride "
                    f"{self.stride}; the nearest sizes are {low} and {low + self.stride}"
                )


@dataclass(frozen=True)
class InputConfig:
    """How pixels become numbers: RGB, scaled to 0..1, then ``(x - mean) / std`` per channel."""

    height: int
    width: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ConfigError(f"input size {self.height}x{self.width} is not positive")
        if min(self.std) <= 0:
            raise ConfigError(f"input std {self.std} must be positive")


@dataclass(frozen=True)
class Provenance:
    """Where weights come from and what may be done with them."""

    name: str = "unnamed"
    licence: str = "unknown"
    data: str = "unknown"
    command: str = ""
    notes: str = ""


@dataclass(frozen=True)
class ModelCard:
    """All that stands in the ``.json`` beside a ``.safetensors``.

    Attributes:
        model: the architecture.
        input: the size and the normalisation it was trained with.
        labels: a name per class.
        palette: an RGB colour per class, for drawing.
        provenance: origin and licence of the weights.
        metrics: what was measured, by name.
    """

    model: ModelConfig
    input: InputConfig
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    metrics: dict[str, float] = field(default_factory=dict)
    format: str = FORMAT
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"format is {self.format!r}, expected {FORMAT!r}")
        if self.version > FORMAT_VERSION:
            raise ConfigError(
                f"version {self.version} is newer than this edge-mdeq reads "
                f"({FORMAT_VERSION}); upgrade edge-mdeq"
            )
        for name, entries in (("labels", self.labels), ("palette", self.palette)):
            if entries and len(entries) != self.model.classes:
                raise ConfigError(
                    f"{name} has {len(entries)} entries, the model has {self.model.classes} classes"
                )
        self.model.check_size(self.input.height, self.input.width)


def read_card(path: Path) -> ModelCard:
    """Read and validate the JSON beside a weights file.

    Raises:
        WeightsError: the file is missing or unreadable.
        ConfigError: it is not JSON, or a field is missing, unknown, or senseless; the message
            names the field.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the model config {path}: {error.strerror}") from error
    return decode_card(raw, str(path))


def decode_card(raw: bytes, where: str) -> ModelCard:
    """Parse and validate; ``where`` names the file in messages.

    Raises:
        ConfigError: as ``read_card``.
    """
    try:
        return convert(msgspec.json.decode(raw), ModelCard)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def encode_card(card: ModelCard) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def write_card(card: ModelCard, path: Path) -> None:
    """Write ``card`` as indented JSON."""
    path.write_bytes(encode_card(card))


def convert(value: object, kind: type[T]) -> T:
    """Turn decoded JSON or YAML into the dataclass ``kind``; a misfit is named with its path.

    Unknown keys are refused too: a misspelt setting must not be ignored.
    """
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error
    refuse_unknown(value, msgspec.to_builtins(converted), "$")
    return converted


def refuse_unknown(given: object, known: object, path: str) -> None:
    """Raise ConfigError for the first key in ``given`` that ``known`` does not have."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                raise ConfigError(f"unknown field `{path}.{key}`; known: {', '.join(known)}")
            refuse_unknown(value, known[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(known, list | tuple):
        for index, (item, counterpart) in enumerate(zip(given, known, strict=False)):
            refuse_unknown(item, counterpart, f"{path}[{index}]")
