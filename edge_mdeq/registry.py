"""Every configuration with a name: the published ones and this project's own. No torch here.

The published rows are those of the yaml files of the second published code (locuslab/deq,
MDEQ-Vision). The first code (locuslab/mdeq) has the same architectures under the same names, its
f ends in a norm with gain and bias everywhere, and one name means something else there: its
ImageNet LARGE has the architecture that the second code calls XL.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from edge_mdeq.config import InputConfig, ModelConfig
from edge_mdeq.errors import ConfigError

__all__ = ["REGISTRY", "Entry", "PublishedSolver", "lookup", "same_architecture"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class PublishedSolver:
    """How the published code solves a row.

    Attributes:
        steps: Broyden steps forward (F_THRES); T steps are T + 1 evaluations of f.
        backward_steps: ... and of the backward solve (B_THRES).
        stop: whether the published tolerance of 1e-3 is on ``||f(z) - z||`` ("abs", which in effect
            runs all steps) or on ``||f(z) - z|| / ||f(z)||`` ("rel").
        first_steps: forward and backward steps in the first code; None where it lacks the row.
    """

    steps: int
    backward_steps: int
    stop: Literal["abs", "rel"]
    first_steps: tuple[int, int] | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of f in the forward solve."""
        return self.steps + 1


@dataclass(frozen=True)
class Entry:
    """One named configuration.

    Attributes:
        name: as ``lookup`` takes it.
        model: the architecture.
        input: the size and normalisation it is trained with.
        about: what it is for, in one sentence.
        published: how the published code solves it; None for this project's own sizes.
        labels: a name per class, where the data set has a usual order.
        palette: an RGB colour per class.
        note: what else one should know.
    """

    name: str
    model: ModelConfig
    input: InputConfig
    about: str
    published: PublishedSolver | None = None
    labels: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    note: str = ""


CIFAR_INPUT = InputConfig(32, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_INPUT = InputConfig(224, 224)
CITYSCAPES_INPUT = InputConfig(1024, 2048)

CIFAR_LABELS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CITYSCAPES_LABELS = (  # in the order of the data set's train ids
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
CAMVID_LABELS = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
CLOTHING_LABELS = (
    "dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt",
    "t-shirt",
)  # fmt: skip

SMALL = (32, 64, 128, 256)
LARGE = (80, 160, 320, 640)
XL = (88, 176, 352, 704)
NANO = (16, 32, 64, 128)

CIFAR_TINY = ModelConfig(
    task="classification",
    classes=10,
    channels=(24, 24),
    downsample_times=0,
    head_channels=(8, 16),
    final_channels=200,
    post_norm_affine=False,
    dropout=0.25,
)
CIFAR_LARGE = replace(
    CIFAR_TINY,
    channels=SMALL,
    head_channels=(14, 28, 56, 112),
    final_channels=1680,
    dropout=0.3,
)
IMAGENET_SMALL = ModelConfig(
    task="classification",
    classes=1000,
    channels=SMALL,
    head_channels=(24, 48, 96, 192),
    final_channels=2048,
)
IMAGENET_LARGE = replace(IMAGENET_SMALL, channels=LARGE, head_channels=(32, 64, 128, 256))
IMAGENET_XL = replace(IMAGENET_LARGE, channels=XL, expansion=6)
CITYSCAPES_SMALL = ModelConfig(
    task="segmentation", classes=19, channels=SMALL, dropout=0.05, norm_momentum=0.01
)
CITYSCAPES_LARGE = replace(CITYSCAPES_SMALL, channels=LARGE, dropout=0.03)
CITYSCAPES_XL = replace(CITYSCAPES_SMALL, channels=XL, expansion=6, dropout=0.04)
CAMVID_NANO = ModelConfig(
    task="segmentation", classes=11, channels=NANO, expansion=4, norm_momentum=0.05
)
CLOTHING_SMALL = ModelConfig(
    task="classification",
    classes=10,
    channels=NANO,
    expansion=3,
    downsample_times=1,
    head_channels=(8, 16, 32, 64),
    final_channels=256,
    norm_momentum=0.05,
)


def cifar(name: str, model: ModelConfig, about: str, solver: PublishedSolver) -> Entry:
    """A published CIFAR-10 row."""
    return Entry(name, model, CIFAR_INPUT, about, solver, CIFAR_LABELS)


def imagenet(
    name: str, model: ModelConfig, about: str, solver: PublishedSolver, note: str = ""
) -> Entry:
    """A published ImageNet row."""
    return Entry(name, model, IMAGENET_INPUT, about, solver, note=note)


def cityscapes(name: str, model: ModelConfig, about: str, solver: PublishedSolver) -> Entry:
    """A published Cityscapes row."""
    return Entry(
        name, model, CITYSCAPES_INPUT, about, solver, CITYSCAPES_LABELS, CITYSCAPES_PALETTE
    )


ENTRIES = (
    cifar(
        "cifar-tiny", CIFAR_TINY, "published CIFAR-10 TINY, trained without augmentation",
        PublishedSolver(18, 20, "rel", (22, 24)),
    ),
    cifar(
        "cifar-large", CIFAR_LARGE, "published CIFAR-10 LARGE",
        PublishedSolver(18, 20, "rel", (18, 20)),
    ),
    cifar(
        "cifar-large-reg", replace(CIFAR_LARGE, dropout=0.22),
        "published CIFAR-10 LARGE with Jacobian regularisation",
        PublishedSolver(8, 7, "rel"),
    ),
    imagenet(
        "imagenet-small", IMAGENET_SMALL, "published ImageNet SMALL",
        PublishedSolver(26, 27, "abs", (26, 27)),
    ),
    imagenet(
        "imagenet-small-reg",
        replace(
            IMAGENET_SMALL, head_channels=(28, 56, 112, 224), post_norm_affine=False, dropout=0.02
        ),
        "published ImageNet SMALL with Jacobian regularisation and a wider readout",
        PublishedSolver(14, 14, "abs"),
    ),
    imagenet(
        "imagenet-large", IMAGENET_LARGE, "published ImageNet LARGE of the second code",
        PublishedSolver(26, 27, "abs"),
        note="the first code's LARGE has the architecture of imagenet-xl, solved with 24/24 steps",
    ),
    imagenet(
        "imagenet-large-reg", replace(IMAGENET_LARGE, post_norm_affine=False),
        "published ImageNet LARGE with Jacobian regularisation",
        PublishedSolver(14, 14, "abs"),
    ),
    imagenet(
        "imagenet-xl", IMAGENET_XL, "published ImageNet XL",
        PublishedSolver(26, 27, "abs", (27, 27)),
        note="also the architecture of the first code's LARGE, solved with 24/24 steps there",
    ),
    cityscapes(
        "cityscapes-small", CITYSCAPES_SMALL, "published Cityscapes SMALL",
        PublishedSolver(27, 30, "abs", (27, 30)),
    ),
    cityscapes(
        "cityscapes-large", CITYSCAPES_LARGE, "published Cityscapes LARGE",
        PublishedSolver(27, 30, "abs", (26, 26)),
    ),
    cityscapes(
        "cityscapes-xl", CITYSCAPES_XL, "published Cityscapes XL",
        PublishedSolver(27, 30, "abs", (26, 26)),
    ),
    # Our own sizes. The published ones leave a gap below imagenet-small, whose evaluation of f
    # costs 1.26 GMAC at 224 x 224 and 52.7 GMAC in cityscapes-small; four to eight of them are a
    # frame. Half the channels and expansion 4 are a fifth of that, with the same four scales.
    Entry(
        "camvid-nano", CAMVID_NANO, InputConfig(192, 256),
        "street scenes on a CPU: 0.25 GMAC per evaluation, the sample model that is shipped",
        labels=CAMVID_LABELS,
    ),
    Entry(
        "camvid-micro", replace(CAMVID_NANO, channels=(8, 16, 32, 64)), InputConfig(192, 256),
        "the narrowest that 8 groups allow: 0.06 GMAC per evaluation, and a state of 184 KB that "
        "stays in the second-level cache of small cores",
        labels=CAMVID_LABELS, note="not trained by this project yet",
    ),
    Entry(
        "clothing-small", CLOTHING_SMALL, InputConfig(64, 64),
        "photographs of one thing each on a CPU: the sample classifier that is shipped",
        labels=CLOTHING_LABELS,
    ),
    Entry(
        "imagenet-nano",
        replace(
            IMAGENET_SMALL, channels=NANO, expansion=4, head_channels=(12, 24, 48, 96),
            final_channels=1024,
        ),
        IMAGENET_INPUT,
        "a classifier whose four evaluations and readout (1.2 GMAC) cost less than a ResNet-18 "
        "(1.8 GMAC)",
        note="not trained by this project yet",
    ),
    Entry(
        "cityscapes-nano",
        replace(CITYSCAPES_SMALL, channels=NANO, expansion=4, dropout=0.0),
        InputConfig(512, 1024),
        "camvid-nano's trunk for the 19 classes of Cityscapes at half size: 2.7 GMAC per "
        "evaluation where cityscapes-small takes 13.2",
        labels=CITYSCAPES_LABELS, palette=CITYSCAPES_PALETTE,
        note="not trained by this project yet",
    ),
)  # fmt: skip

REGISTRY: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in ENTRIES})


def lookup(name: str) -> Entry:
    """The configuration called ``name``, such as "imagenet-small".

    Raises:
        ConfigError: there is none of that name; the message has near misses, or all names.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    near = difflib.get_close_matches(wanted, REGISTRY, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(REGISTRY)}"
    raise ConfigError(f"no configuration is called {name!r}; {hint}")


def same_architecture(config: ModelConfig) -> tuple[Entry, ...]:
    """Entries whose weights have the shapes of ``config``, those that agree on the last norm first.

    What no shape shows is ignored (the stem's strides, dropout, momentum), and so is whether f's
    last norm has a gain, in which the two published codes differ for the same row. Groups count:
    they show in no shape either, but other groups are another function.
    """

    def shown(model: ModelConfig) -> ModelConfig:
        # A value that every model may have, so that the rest can be compared as a whole.
        return replace(
            model, downsample_times=2, post_norm_affine=True, dropout=0.0, norm_momentum=0.1
        )

    found = [
        entry
        for entry in REGISTRY.values()
        if shown(entry.model) == shown(config)
        and entry.model.has_injection_transform == config.has_injection_transform
    ]
    agrees = config.post_norm_affine
    return tuple(sorted(found, key=lambda entry: entry.model.post_norm_affine != agrees))
