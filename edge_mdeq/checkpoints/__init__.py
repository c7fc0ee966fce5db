"""Checkpoints of the published MDEQ codes become weights of this project.

    file --reading--> tensors --layouts--> Checkpoint --infer--> config --convert--> MDEQ
                                               |                                      |
                                               +--formulas------- verify -------------+

Example:
    >>> model, card = import_checkpoint(Path("MDEQ_Small_Cls.pkl"))
    >>> save_weights(model, card, Path("imagenet-small.safetensors"))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge_mdeq.checkpoints.convert import build_model
from edge_mdeq.checkpoints.infer import Architecture, infer_architecture
from edge_mdeq.checkpoints.layouts import Checkpoint, open_checkpoint
from edge_mdeq.checkpoints.reading import file_digest
from edge_mdeq.checkpoints.verify import Difference, require_agreement, verify
from edge_mdeq.config import InputConfig, ModelCard, Provenance
from edge_mdeq.errors import ConfigError, WeightsError
from edge_mdeq.model import MDEQ

__all__ = [
    "Architecture",
    "Checkpoint",
    "Difference",
    "ImportSettings",
    "import_checkpoint",
    "infer_architecture",
    "make_card",
    "open_checkpoint",
    "read_labels",
    "require_agreement",
    "verify",
]

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImportSettings:
    """What a checkpoint does not tell; None leaves it to the published row that it matches.

    Attributes:
        downsample_times: strided convolutions of the stem.
        groups: groups of the norms in f.
        size: (height, width) of the input.
        mean, std: normalisation of the input, per channel, on a scale of 0..1.
        labels: a name per class.
        name: the name of the weights.
        licence: what may be done with them; the published ones come with no statement.
    """

    downsample_times: int | None = None
    groups: int = 8
    size: tuple[int, int] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    labels: tuple[str, ...] = ()
    name: str = ""
    licence: str = "unknown"


def import_checkpoint(path: Path, settings: ImportSettings | None = None) -> tuple[MDEQ, ModelCard]:
    """Read a checkpoint of one of the published codes; nothing in the file is executed.

    Returns:
        The model, in eval mode on the CPU, and its card.

    Raises:
        WeightsError: the file cannot be read safely, is of another network, has keys left over or
            missing, or values that make no sense; the message counts and lists the culprits.
        ConfigError: a setting that contradicts the model, or one that is needed and not given.
    """
    settings = settings or ImportSettings()
    checkpoint = open_checkpoint(path)
    architecture = infer_architecture(checkpoint, settings.groups, settings.downsample_times)
    card = make_card(checkpoint, architecture, settings)
    return build_model(checkpoint, architecture.config), card


def make_card(
    checkpoint: Checkpoint, architecture: Architecture, settings: ImportSettings
) -> ModelCard:
    """The card of an imported model: from the row that it matches, and from ``settings``."""
    entry = architecture.entries[0] if architecture.entries else None
    if settings.size is None and entry is None:
        raise ConfigError(
            f"{checkpoint.path} matches no published model, so its input size is unknown; give "
            f"--imgsz H W, multiples of {architecture.config.stride}"
        )
    height, width = settings.size or (0, 0)
    given = replace(entry.input) if entry else InputConfig(height, width)
    if settings.size is not None:
        given = replace(given, height=height, width=width)
    given = replace(given, mean=settings.mean or given.mean, std=settings.std or given.std)
    digest = file_digest(checkpoint.path)
    notes = f"imported from {checkpoint.path.name} (sha256 {digest}), layout {checkpoint.layout}"
    if architecture.entries:
        names = " or ".join(row.name for row in architecture.entries)
        notes += f"; its shapes are those of {names}"
    return ModelCard(
        model=architecture.config,
        input=given,
        labels=settings.labels or (entry.labels if entry else ()),
        palette=entry.palette if entry else (),
        provenance=Provenance(
            name=settings.name or (entry.name if entry else plain_stem(checkpoint.path)),
            licence=settings.licence,
            command=f"edge-mdeq import {checkpoint.path.name}",
            notes=notes,
        ),
    )


def plain_stem(path: Path) -> str:
    """The file's name without its endings: "checkpoint" of ``checkpoint.pth.tar``."""
    return path.name.split(".")[0] or path.name


def read_labels(path: Path) -> tuple[str, ...]:
    """A name per class, from a text file with one name per line; empty lines at the end are not.

    Raises:
        WeightsError: the file cannot be read.
        ConfigError: a line is empty between others.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read the labels {path}: {error}") from error
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if not all(labels) or not labels:
        raise ConfigError(f"{path} needs one class name per line, and has an empty one")
    return labels
