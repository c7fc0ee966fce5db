"""Recipes: read with defaults, and refused by the name of the field that makes no sense."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from tiny_data import LABELS
from tiny_training import CLASSIFIER, SEGMENTER, write_recipe

from edge_mdeq.config import ModelConfig
from edge_mdeq.errors import ConfigError
from edge_mdeq.training.recipe import LIMITS, OptimConfig, Recipe, SolverConfig, read_recipe

RECIPE = """
[model]
task = "segmentation"
classes = 3
channels = [8, 16]
[input]
height = 64
width = 64
[data]
labels = ["ground", "disc", "box"]
palette = [[90, 90, 90], [220, 40, 40], [40, 40, 220]]
[optim]
epochs = 2
"""
CLASSIFICATION = """
[model]
task = "classification"
classes = 3
channels = [8, 16]
head_channels = [8, 8]
final_channels = 9
[input]
height = 64
width = 64
[data]
layout = "folder"
[optim]
epochs = 2
"""


def read_text(text: str, folder: Path) -> Recipe:
    (folder / "recipe.toml").write_text(text)
    return read_recipe(folder / "recipe.toml")


def test_a_recipe_is_read_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    recipe = read_text(RECIPE, tmp_path)
    assert recipe.optim == OptimConfig(epochs=2)
    assert recipe.solver == SolverConfig()
    assert recipe.data.labels == LABELS
    assert recipe.epochs == 2


def test_what_published_recipes_set_beyond_the_defaults(tmp_path: Path) -> None:
    more = """
    [solver]
    name = "broyden"
    m = 27
    best = true
    [gradient]
    solver = "anderson"
    m = 6
    [loss]
    class_weights = [0.5, 1, 1.5]
    [augment]
    zoom = [0.5, 2.1]
    crop = [32, 64]
    """
    recipe = read_text(RECIPE + more, tmp_path)
    assert (recipe.solver.m, recipe.solver.best, recipe.gradient.m) == (27, True, 6)
    assert recipe.loss.class_weights == (0.5, 1.0, 1.5)
    assert (recipe.augment.zoom, recipe.augment.crop) == ((0.5, 2.1), (32, 64))


def test_a_folder_s_labels_may_be_left_out(tmp_path: Path) -> None:
    assert read_text(CLASSIFICATION, tmp_path).data.labels == ()


@pytest.mark.parametrize("recipe", [SEGMENTER, CLASSIFIER], ids=["segmentation", "classification"])
def test_every_field_can_be_written(tmp_path: Path, recipe: Recipe) -> None:
    assert read_recipe(write_recipe(recipe, tmp_path / "recipe.toml")) == recipe


RECIPES = sorted(Path(__file__).parents[3].glob("samples/recipes/**/*.toml"))


def test_there_are_sample_recipes() -> None:
    assert {"camvid-nano.toml", "clothing-small.toml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_sample_recipe_makes_sense(path: Path) -> None:
    read_recipe(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epochs = 2\nlearning_rate = 1", r"unknown field `\$\.optim\.learning_rate"),
        ("[optim]", "[optimiser]", "missing required field `optim`"),
        ("epochs = 2", 'epochs = "2"', r"Expected `int`, got `str` - at `\$\.optim\.epochs`"),
        ("epochs = 2", "batch = 2", "missing required field `epochs`"),
        ("height = 64", "height = 60", "height 60 is not a multiple of the model's stride 8"),
        ('"disc", ', "", r"data\.labels has 2 entries, the model has 3 classes"),
        (", [40, 40, 220]", "", r"data\.palette needs one RGB colour per class"),
        ("[data]", "[data]\nlayout = 'folder'", r"data\.layout 'folder' is not for segmentation"),
        ("[data]", "[data]\nlayout = 'voc'", r"`\$\.data\.layout`"),
        ("[data]", "[data]\ncentre = 0", r"data\.centre is 0"),
        ("[data]", "[data]\ncentre = 1.5", r"data\.centre is 1\.5, must be in \(0, 1\]"),
        ("[optim]", "[solver]\nevaluations = [5, 4]\n[optim]", r"solver\.evaluations 5\.\.4"),
        ("[optim]", "[finish]\nevaluations = [3, 1]\n[optim]", r"finish\.evaluations 3\.\.1"),
        ("[optim]", "[solver]\nname = 'newton'\n[optim]", r"`\$\.solver\.name`"),
        ("[optim]", "[solver]\nstop_mode = 'both'\n[optim]", r"`\$\.solver\.stop_mode`"),
        ("[optim]", "[gradient]\nkind = 'exact'\n[optim]", r"`\$\.gradient\.kind`"),
        ("[optim]", "[gradient]\nsolver = 'newton'\n[optim]", r"`\$\.gradient\.solver`"),
        ("[optim]", "[loss]\nclass_weights = 'linear'\n[optim]", r"`\$\.loss\.class_weights`"),
        ("[optim]", "[jacobian]\njitter = [1, -1]\n[optim]", r"jacobian\.jitter 1\.\.-1"),
        (
            "[optim]",
            "[jacobian]\njitter = [-4, 1]\n[optim]",
            r"jacobian\.jitter -4 leaves fewer than one of solver\.evaluations 4",
        ),
        ("[optim]", "[augment]\nscale = [0.9, 0.5]\n[optim]", r"augment\.scale 0\.9\.\.0\.5"),
        ("[optim]", "[augment]\nratio = [2, 1]\n[optim]", r"augment\.ratio 2\.0\.\.1\.0"),
        ("[optim]", "[augment]\nzoom = [2, 1]\n[optim]", r"augment\.zoom 2\.0\.\.1\.0"),
        ("[optim]", "[augment]\nzoom = [0, 1]\n[optim]", r"augment\.zoom holds 0, must be above"),
        ("[optim]", "[augment]\ncrop = [32, 0]\n[optim]", r"augment\.crop holds 0, must be above"),
        ("[optim]", "[augment]\ncrop = [32, 36]\n[optim]", r"augment\.crop: image width 36 is not"),
        (
            "[optim]",
            "[solver]\nm = 3\n[optim]",
            r"solver\.m is 3, fixed_point keeps at most 0",
        ),
        (
            "[optim]",
            "[solver]\nname = 'anderson'\n[gradient]\nm = 7\n[optim]",
            r"gradient\.m is 7, anderson keeps at most 6",
        ),
        (
            "[optim]",
            "[loss]\nclass_weights = [1, 2]\n[optim]",
            r"loss\.class_weights has 2 entries, the model has 3 classes",
        ),
        (
            "[optim]",
            "[loss]\nclass_weights = [1, 2, nan]\n[optim]",
            r"loss\.class_weights holds nan, must be positive",
        ),
        ("epochs = 2", "epochs = 2\nname = 'lion'", r"`\$\.optim\.name`"),
        (
            "epochs = 2",
            "epochs = 2\nbatch = 8\naccumulate = 3",
            r"optim\.accumulate 3 does not divide optim\.batch 8",
        ),
        (
            "epochs = 2",
            "epochs = 2\nnesterov = true\nmomentum = 0",
            r"optim\.nesterov needs an optim\.momentum above 0",
        ),
        ("[model]", "seed = 1.5\n[model]", r"`\$\.seed`"),
        ("channels = [8, 16]", "channels = [8, 12]", r"channels\[1\] is 12"),
    ],
)
def test_a_senseless_recipe_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(ConfigError, match=r"recipe\.toml: .*" + message):
        read_text(RECIPE.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("folder", "camvid", r"data\.layout 'camvid' is not for classification"),
        ("[optim]", "labels = ['a', 'b']\n[optim]", r"data\.labels has 2 entries.* 3 classes"),
        ("[optim]", "[augment]\nzoom = [1, 2]\n[optim]", r"augment\.zoom is for segmentation"),
        ("[optim]", "[augment]\ncrop = [8, 8]\n[optim]", r"augment\.crop is for segmentation"),
    ],
)
def test_so_is_one_for_classification(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.toml: .*" + message):
        read_text(CLASSIFICATION.replace(old, new), tmp_path)


def test_a_recipe_made_in_a_program_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"data\.layout 'cifar' is none of camvid, cityscapes"):
        replace(CLASSIFIER, data=replace(CLASSIFIER.data, layout="cifar"))  # type: ignore[arg-type]


def outside(name: str) -> list[float]:
    """Values just outside the limits of a field, and values that are no numbers."""
    low, high = LIMITS[name]
    whole = isinstance(value_of(name), int)
    step = 1 if whole else 1e-3
    found = [low - step, high + step]
    return [x for x in found if abs(x) < 1e9] + ([] if whole else [float("nan"), float("inf")])


def value_of(name: str) -> object:
    """The tiny recipe's own value of a field, or the first of a list."""
    section, key = name.split(".")
    value = getattr(getattr(SEGMENTER, section), key)
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_out_of_its_limits_is_named(name: str) -> None:
    section, key = name.split(".")
    part = getattr(SEGMENTER, section)
    for number in outside(name):
        value = (number, number) if isinstance(getattr(part, key), tuple) else number
        with pytest.raises(ConfigError, match=rf"recipe: {section}\.{key} holds .* at least"):
            replace(SEGMENTER, **{section: replace(part, **{key: value})})


def test_every_number_has_limits() -> None:
    """A new field is either limited or checked otherwise, or any value of it makes sense."""
    free = {"data.ignore", "data.palette", "data.centre", "jacobian.growth", "jacobian.jitter"}
    numbers = set()
    for section in fields(Recipe):
        part = getattr(SEGMENTER, section.name)
        if section.name in ("model", "input", "provenance", "seed"):
            continue
        for field in fields(part):
            value = getattr(part, field.name)
            first = value[0] if isinstance(value, tuple) else value
            if isinstance(first, int | float | tuple) and not isinstance(first, bool):
                numbers.add(f"{section.name}.{field.name}")
    assert numbers - free == set(LIMITS)


@pytest.mark.parametrize("raw", [b"[model", b"\xff\xfe", b"a = " + b"[" * 100_000])
def test_a_recipe_that_is_not_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML"):
        read_recipe(tmp_path / "recipe.toml")


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*absent\.toml: No such file"):
        read_recipe(tmp_path / "absent.toml")


def test_a_model_without_classes_is_refused_by_its_own_config() -> None:
    with pytest.raises(ConfigError, match="classes is 1"):
        ModelConfig(task="segmentation", classes=1, channels=(8,))
