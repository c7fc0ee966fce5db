"""Training: a tiny run from a folder of images to weights, its parts, and what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from edge_mdeq.config import InputConfig, ModelConfig, Provenance
from edge_mdeq.errors import ConfigError, DataError, WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.training.augment import Augment
from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
from edge_mdeq.training.data import IGNORED, SegmentationFolder, class_frequencies
from edge_mdeq.training.evaluate import evaluate, mean_iou
from edge_mdeq.training.loop import (
    class_weights,
    draw_plan,
    learning_rate,
    parameter_groups,
    random_state,
    restore_random,
    train,
)
from edge_mdeq.training.recipe import (
    AugmentConfig,
    DataConfig,
    FinishConfig,
    GradientConfig,
    JacobianConfig,
    LossConfig,
    OptimConfig,
    Recipe,
    SolverConfig,
    ValidationConfig,
    read_recipe,
)
from edge_mdeq.training.task import normalise, segmentation_loss

Mask = NDArray[np.uint8]

COLOURS = np.array([[90, 90, 90], [220, 40, 40], [40, 40, 220]], dtype=np.uint8)  # RGB
LABELS = ("ground", "disc", "box")
VOID = 7  # what the masks mark as ignored

TINY = Recipe(
    model=ModelConfig(task="segmentation", classes=3, channels=(8, 16), expansion=2),
    input=InputConfig(64, 64),
    data=DataConfig(LABELS, ((90, 90, 90), (220, 40, 40), (40, 40, 220)), ignore=(VOID,)),
    optim=OptimConfig(epochs=3, batch=2, lr=1e-2, warmup_steps=1, ema_decay=0.5),
    solver=SolverConfig(unrolled_epochs=1, unrolled_steps=2, evaluations=(2, 3)),
    gradient=GradientConfig(steps=2),
    jacobian=JacobianConfig(weight=0.1, frequency=0.5),
    augment=AugmentConfig(scale=(0.7, 1.0)),
    validation=ValidationConfig(every=2, evaluations=2, curve=(1, 2)),
    provenance=Provenance(name="tiny", licence="CC0"),
)
STEPS_PER_EPOCH = 3


def draw_scene(seed: int) -> tuple[Mask, Mask]:
    """An image (64, 96, 3) RGB with a disc and a box, and its mask with a void border."""
    rng = np.random.default_rng(seed)
    mask: Mask = np.zeros((64, 96), dtype=np.uint8)
    cv2.circle(mask, (int(rng.integers(16, 40)), int(rng.integers(16, 48))), 12, 1, -1)
    x, y = int(rng.integers(50, 70)), int(rng.integers(6, 36))
    cv2.rectangle(mask, (x, y), (x + 18, y + 20), 2, -1)
    noise = rng.integers(-10, 10, (64, 96, 3))
    image = (COLOURS[mask].astype(int) + noise).clip(0, 255).astype(np.uint8)
    mask[:2] = VOID
    return image, mask


def write_scene(root: Path, split: str, name: str, seed: int) -> None:
    image, mask = draw_scene(seed)
    for folder in (root / split, root / f"{split}annot"):
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / split / f"{name}.png"), image[..., ::-1])
    cv2.imwrite(str(root / f"{split}annot" / f"{name}.png"), mask)


def make_dataset(root: Path) -> Path:
    for seed in range(2 * STEPS_PER_EPOCH):
        write_scene(root, "train", f"{seed:03}", seed)
    for seed in range(2):
        write_scene(root, "val", f"{seed:03}", 100 + seed)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The dataset, and the folder of a finished run of ``TINY`` on it."""
    root = tmp_path_factory.mktemp("training")
    train(TINY, make_dataset(root / "data"), root / "run")
    return root / "data", root / "run"


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# A run


def test_a_run_leaves_weights_card_log_metrics_and_checkpoint(run: tuple[Path, Path]) -> None:
    names = sorted(p.name for p in run[1].iterdir())
    assert names == [
        "checkpoint.pt", "log.jsonl", "metrics.json", "weights.json", "weights.safetensors",
    ]  # fmt: skip


def test_the_card_says_what_was_trained_and_what_came_out(run: tuple[Path, Path]) -> None:
    from edge_mdeq.weights import load_weights

    _, card = load_weights(run[1])
    assert (card.model, card.input, card.labels) == (TINY.model, TINY.input, LABELS)
    assert card.provenance == TINY.provenance
    assert set(card.metrics) == {
        f"miou_{start}_{count}" for start in ("cold", "warm") for count in (1, 2)
    }


def test_the_card_s_metrics_are_those_of_the_weights(run: tuple[Path, Path]) -> None:
    from edge_mdeq.weights import load_weights

    data, out = run
    model, card = load_weights(out)
    held_out = SegmentationFolder(data, "val", 3, (VOID,), (64, 64))
    score = evaluate(model, held_out, card.input, 2)
    assert card.metrics["miou_cold_2"] == pytest.approx(score.miou, abs=1e-4)


def test_the_log_has_an_entry_per_epoch_and_validates_as_told(run: tuple[Path, Path]) -> None:
    log = log_of(run[1])
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert [entry["step"] for entry in log] == [3, 6, 9]
    assert ["miou" in entry for entry in log] == [False, True, True]  # every 2, and the last


def test_the_loss_falls(run: tuple[Path, Path]) -> None:
    losses = [entry["loss"] for entry in log_of(run[1])]
    assert losses[-1] < 0.8 * losses[0]


def test_training_is_deterministic_given_the_seed(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = run
    torch.manual_seed(99)
    random.seed(99)
    assert same_weights(train(TINY, data, tmp_path / "again"), out / "weights.safetensors")


def test_another_seed_gives_other_weights(run: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = run
    short = replace(TINY, seed=1, optim=replace(TINY.optim, epochs=1))
    assert not same_weights(train(short, data, tmp_path / "other"), out / "weights.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    assert list(first) == list(second)
    return all(torch.equal(first[key], second[key]) for key in first)


class Killed(BaseException):
    """Like a signal: nothing in the loop may catch it."""


def kill_after(steps: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        if done > steps:
            raise Killed

    return progress


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_a_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(
    run: tuple[Path, Path], tmp_path: Path, epochs_done: int
) -> None:
    data, whole = run
    out = tmp_path / "killed"
    with pytest.raises(Killed):  # in the middle of the epoch that follows
        train(TINY, data, out, progress=kill_after(epochs_done * STEPS_PER_EPOCH + 1))
    torch.manual_seed(99)
    random.seed(99)
    resumed = train(TINY, data, out, resume=True)
    assert same_weights(resumed, whole / "weights.safetensors")
    assert [entry["epoch"] for entry in log_of(out)] == [1, 2, 3]


def test_a_second_run_into_the_same_folder_is_refused(run: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run .*--resume, or choose another"):
        train(TINY, *run)


def test_resuming_without_a_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*; start without --resume"):
        train(TINY, data, tmp_path / "new", resume=True)


def test_resuming_another_model_s_run_is_refused(run: tuple[Path, Path]) -> None:
    other = replace(TINY, model=replace(TINY.model, channels=(16, 16)))
    with pytest.raises(WeightsError, match=r"checkpoint\.pt is of a run with another model"):
        train(other, *run, resume=True)


def test_an_output_folder_that_cannot_be_made_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        train(TINY, data, tmp_path / "file")


def test_a_batch_larger_than_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    greedy = replace(TINY, optim=replace(TINY.optim, batch=100))
    with pytest.raises(ConfigError, match=r"optim\.batch 100 exceeds the 6 images"):
        train(greedy, data, tmp_path / "run")


def test_images_of_different_sizes_are_refused(data: Path, tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        path = str(data / folder / "003.png")
        cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[:32])
    with pytest.raises(ConfigError, match=r"003\.png is \(32, 96\), 000\.png is \(64, 96\)"):
        train(TINY, data, tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient": GradientConfig("implicit", steps=4, tol=1e-3)},
        {"solver": replace(TINY.solver, name="anderson", unrolled_epochs=0)},
        {"model": replace(TINY.model, channels=(8, 8, 16), dropout=0.2)},
        {"loss": LossConfig("none", lovasz=0.0), "jacobian": JacobianConfig(weight=0.0)},
    ],
    ids=["implicit gradient", "Anderson from the start", "3 scales and dropout", "plain loss"],
)
def test_every_kind_of_recipe_runs(data: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    short = replace(TINY, optim=replace(TINY.optim, epochs=2), **changes)  # type: ignore[arg-type]
    weights = train(short, data, tmp_path / "run")
    assert all(bool(x.isfinite().all()) for x in load_file(weights).values())


# Checkpoints


def test_a_checkpoint_survives(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3.0)}, "epoch": 2, "random": random_state()}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded["epoch"] == 2
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert loaded["random"]["python"] == state["random"]["python"]  # type: ignore[index]


def test_a_checkpoint_cannot_execute_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", {"w": torch.zeros(1000)})
    raw = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_restoring_the_random_state_repeats_what_was_drawn() -> None:
    state = random_state()
    drawn = random.random(), torch.rand(3).tolist()
    restore_random(state)
    assert (random.random(), torch.rand(3).tolist()) == drawn


# Data


def load(data: Path, split: str = "train") -> SegmentationFolder:
    return SegmentationFolder(data, split, 3, (VOID,))


def test_an_item_is_the_image_in_rgb_and_its_mask_with_void_ignored(data: Path) -> None:
    image, mask = load(data)[0]
    expected_image, expected_mask = draw_scene(0)
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected_image))
    expected_mask[expected_mask == VOID] = IGNORED
    assert torch.equal(mask, torch.from_numpy(expected_mask))


def test_items_are_fitted_to_a_size_when_asked(data: Path) -> None:
    image, mask = SegmentationFolder(data, "val", 3, (VOID,), (32, 48))[0]
    assert tuple(image.shape) == (3, 32, 48)
    assert tuple(mask.shape) == (32, 48)
    assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORED}


def rename_folder(data: Path) -> None:
    (data / "trainannot").rename(data / "masks")


def empty_folder(data: Path) -> None:
    for path in (data / "train").iterdir():
        path.unlink()


def remove_mask(data: Path) -> None:
    (data / "trainannot" / "002.png").unlink()


def shrink_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros((64, 95), dtype=np.uint8))


def colour_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros((64, 96, 3), dtype=np.uint8))


def deepen_mask(data: Path) -> None:
    cv2.imwrite(str(data / "trainannot" / "002.png"), np.zeros((64, 96), dtype=np.uint16))


def mislabel(data: Path) -> None:
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[0, :2] = 3, 200
    cv2.imwrite(str(data / "trainannot" / "002.png"), mask)


def corrupt_image(data: Path) -> None:
    (data / "train" / "002.png").write_bytes(b"not an image")


def corrupt_mask(data: Path) -> None:
    (data / "trainannot" / "002.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_folder, "trainannot is not a folder; expected .* to hold train/, trainannot/"),
        (empty_folder, "train holds no images"),
        (remove_mask, r"train/002\.png has no mask: .*trainannot/002\.png is missing"),
        (shrink_mask, r"trainannot/002\.png is \(64, 95\), its image is \(64, 96\)"),
        (colour_mask, r"trainannot/002\.png has shape \(64, 96, 3\).*expected an 8-bit index"),
        (deepen_mask, r"trainannot/002\.png has .* type uint16; expected an 8-bit index"),
        (mislabel, r"trainannot/002\.png holds labels \[3, 200\], out of range for 3 classes"),
        (corrupt_image, r"train/002\.png cannot be decoded"),
        (corrupt_mask, r"trainannot/002\.png cannot be decoded"),
    ],
)
def test_unusable_data_is_refused_and_named(
    data: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(data)
    with pytest.raises(DataError, match=message):
        load(data)


def test_a_missing_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent/train is not a folder"):
        load(tmp_path / "absent")


def test_a_class_that_never_occurs_is_named(data: Path) -> None:
    with pytest.raises(DataError, match=r"classes \[3\] never occur in .*train"):
        class_frequencies(SegmentationFolder(data, "train", 4, (VOID,)), 4)


def test_frequencies_are_shares_of_the_labelled_pixels(data: Path) -> None:
    folder = load(data)
    masks = np.stack([draw_scene(seed)[1] for seed in range(len(folder))])
    counts = np.array([(masks == label).sum() for label in range(3)])
    np.testing.assert_allclose(class_frequencies(folder, 3), counts / (masks != VOID).sum())


def test_class_weights_are_roots_with_mean_one_over_the_pixels(data: Path) -> None:
    folder = load(data)
    frequency = class_frequencies(folder, 3)
    weights = class_weights(LossConfig("sqrt"), folder, 3, torch.device("cpu"))
    assert weights is not None
    assert float((weights.double() * torch.from_numpy(frequency)).sum()) == pytest.approx(1)
    ratio = float(weights[1] / weights[0])
    assert ratio == pytest.approx(math.sqrt(frequency[0] / frequency[1]))


def test_augmentation_moves_image_and_mask_together() -> None:
    """The image shows its own label; after augmentation it must still."""
    mask = torch.from_numpy(np.stack([draw_scene(seed)[1] for seed in range(4)]))
    mask[mask == VOID] = IGNORED
    image = (mask.clamp(max=2) * 100).unsqueeze(1).repeat(1, 3, 1, 1)
    still = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0)
    torch.manual_seed(0)
    moved_image, moved_mask = Augment(still, (64, 64))(image, mask)
    assert tuple(moved_image.shape) == (4, 3, 64, 64)
    assert set(moved_mask.unique().tolist()) <= {0, 1, 2, IGNORED}
    shown = (moved_image[:, 0] * 2.55).round().long()
    labelled = moved_mask != IGNORED
    assert (shown == moved_mask)[labelled].float().mean() > 0.9  # edges are interpolated


def test_augmentation_draws_anew_for_every_image() -> None:
    image = torch.from_numpy(draw_scene(0)[0]).permute(2, 0, 1).repeat(2, 1, 1, 1)
    torch.manual_seed(0)
    augmented, _ = Augment(AugmentConfig(), (64, 64))(image, torch.zeros(2, 64, 96).byte())
    assert not torch.equal(augmented[0], augmented[1])


# Steps


def test_normalisation_is_per_channel() -> None:
    config = InputConfig(64, 64, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    x = normalise(torch.ones(1, 3, 2, 2), config)
    assert x[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.fixture
def answers() -> tuple[Tensor, Tensor]:
    """Logits that are right everywhere, and their target with an ignored half."""
    target = torch.from_numpy(draw_scene(0)[1]).long()[None]
    target[target == VOID] = IGNORED
    target[:, 40:] = IGNORED
    logits = 20.0 * torch.nn.functional.one_hot(target.clamp(max=2), 3).permute(0, 3, 1, 2)
    return logits, target


@pytest.mark.parametrize("lovasz", [0.0, 0.5])
def test_the_loss_of_a_perfect_answer_is_zero(
    answers: tuple[Tensor, Tensor], lovasz: float
) -> None:
    assert float(segmentation_loss(*answers, None, LossConfig(lovasz=lovasz))) < 1e-4


@pytest.mark.parametrize("lovasz", [0.0, 0.5])
def test_ignored_pixels_do_not_enter_the_loss(
    answers: tuple[Tensor, Tensor], lovasz: float
) -> None:
    logits, target = answers
    torch.manual_seed(0)
    logits = logits + torch.randn(logits.shape)
    before = segmentation_loss(logits, target, None, LossConfig(lovasz=lovasz))
    logits[:, :, 40:] = torch.randn(logits[:, :, 40:].shape)
    after = segmentation_loss(logits, target, None, LossConfig(lovasz=lovasz))
    assert float(before) == pytest.approx(float(after))
    assert float(before) > 0


def test_lovasz_adds_one_minus_the_iou_of_hard_answers(answers: tuple[Tensor, Tensor]) -> None:
    """For certain answers the surrogate equals the mean Jaccard loss it extends."""
    logits, target = answers
    logits = logits.roll(6, dims=3) * 100
    cross_entropy = segmentation_loss(logits, target, None, LossConfig(lovasz=0))
    both = segmentation_loss(logits, target, None, LossConfig(lovasz=1.0))
    seen, truth = logits.argmax(dim=1)[..., ::2, ::2], target[..., ::2, ::2]
    seen, truth = seen[truth != IGNORED], truth[truth != IGNORED]
    ious = [
        float(((seen == k) & (truth == k)).sum() / ((seen == k) | (truth == k)).sum())
        for k in range(3)
    ]
    assert float(both - cross_entropy) == pytest.approx(1 - sum(ious) / 3, abs=1e-3)


def test_the_first_epochs_unroll_and_later_ones_solve() -> None:
    random.seed(0)
    first = [draw_plan(TINY, epoch=0) for _ in range(50)]
    later = [draw_plan(TINY, epoch=1) for _ in range(50)]
    assert {(p.unrolled, p.evaluations, p.penalise) for p in first} == {(True, 2, False)}
    assert {p.unrolled for p in later} == {False}
    assert {p.evaluations for p in later} == {2, 3}  # both ends included
    assert {p.penalise for p in later} == {False, True}


def test_the_learning_rate_warms_up_and_falls_to_zero_as_a_cosine() -> None:
    recipe = replace(TINY, optim=OptimConfig(epochs=1, lr=0.2, warmup_steps=10))
    rates = [learning_rate(recipe, step, epoch_steps=1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[500] == pytest.approx(0.1)
    assert rates[999] < 1e-5
    assert rates[9:] == sorted(rates[9:], reverse=True)


FINISHING = replace(
    TINY,
    optim=replace(TINY.optim, epochs=2, lr=0.2),
    finish=FinishConfig(epochs=1, lr=0.05, evaluations=(1, 1), jacobian_frequency=1.0),
)


def test_the_last_phase_has_a_cosine_of_its_own() -> None:
    rates = [learning_rate(FINISHING, step, epoch_steps=100) for step in range(300)]
    assert rates[199] < 1e-3
    assert rates[200] == pytest.approx(0.05)
    assert rates[250] == pytest.approx(0.025)
    assert rates[299] < 1e-4


def test_the_last_phase_has_evaluations_and_penalties_of_its_own() -> None:
    random.seed(0)
    assert {draw_plan(FINISHING, 1).evaluations for _ in range(50)} == {2, 3}
    finishing = [draw_plan(FINISHING, 2) for _ in range(50)]
    assert {(p.unrolled, p.evaluations, p.penalise) for p in finishing} == {(False, 1, True)}


def test_the_last_phase_comes_after_the_epochs_of_the_first(data: Path, tmp_path: Path) -> None:
    train(FINISHING, data, tmp_path / "run")
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2, 3]


def test_only_kernels_decay() -> None:
    model = MDEQ(TINY.model)
    decaying, plain = parameter_groups(model, TINY.optim)
    assert decaying["weight_decay"] == TINY.optim.weight_decay
    assert plain["weight_decay"] == 0
    gains = [block.conv1.gain for block in model.cell.blocks]
    assert {id(p) for p in gains} <= {id(p) for p in plain["params"]}
    assert all(p.ndim == 4 for p in decaying["params"])
    assert len(decaying["params"]) + len(plain["params"]) == len(list(model.parameters()))


# Scores


def test_mean_iou_of_a_confusion_matrix_worked_out_by_hand() -> None:
    """Rows are the truth: class 0 has 3 hits of 5 in the union, 1 has 2 of 3, 2 has none of 1."""
    iou, mean = mean_iou(np.array([[3, 1, 0], [0, 2, 0], [1, 0, 0]]))
    np.testing.assert_allclose(iou, [3 / 5, 2 / 3, 0])
    assert mean == pytest.approx((3 / 5 + 2 / 3) / 3)


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_count() -> None:
    iou, mean = mean_iou(np.array([[2, 0, 0], [0, 0, 0], [2, 0, 4]]))
    assert np.isnan(iou[1])
    assert mean == pytest.approx((2 / 4 + 4 / 6) / 2)


@pytest.mark.parametrize("warm", [False, True])
def test_a_score_is_what_counting_pixels_gives(
    data: Path, build: Callable[..., MDEQ], warm: bool
) -> None:
    model, folder = build(TINY.model), SegmentationFolder(data, "val", 3, (VOID,), (64, 64))
    hits, unions, z = np.zeros(3), np.zeros(3), None
    with torch.no_grad():
        for image, mask in folder:
            u = model.inject(normalise(image[None] / 255, TINY.input))
            f = model.bind(u)
            z = model.zero_state(u) if z is None or not warm else z
            for _ in range(3):
                z = f(z)
            logits = torch.nn.functional.interpolate(
                model.readout(z), size=(64, 64), mode="bilinear", align_corners=True
            )
            seen, labelled = logits.argmax(dim=1)[0], mask != IGNORED
            for k in range(3):
                hits[k] += int(((seen == k) & (mask == k)).sum())
                unions[k] += int((((seen == k) | (mask == k)) & labelled).sum())
    score = evaluate(model, folder, TINY.input, 3, warm=warm)
    np.testing.assert_allclose(score.iou, hits / unions, atol=2e-3)  # freezing rounds differently
    assert score.miou == pytest.approx((hits / unions).mean(), abs=2e-3)


# Recipes

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


def read_text(text: str, folder: Path) -> Recipe:
    (folder / "recipe.toml").write_text(text)
    return read_recipe(folder / "recipe.toml")


def test_a_recipe_is_read_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    recipe = read_text(RECIPE, tmp_path)
    assert recipe.optim.epochs == 2
    assert recipe.solver == SolverConfig()
    assert recipe.data.labels == LABELS


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("samples/recipes/*.toml")), ids=lambda p: p.name
)
def test_every_sample_recipe_makes_sense(path: Path) -> None:
    read_recipe(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "epochs = 2",
            "epochs = 2\nlearning_rate = 1",
            r"unknown field `\$\.optim\.learning_rate`",
        ),
        ("[optim]", "[optimiser]", "missing required field `optim`"),
        ("epochs = 2", 'epochs = "2"', r"Expected `int`, got `str` - at `\$\.optim\.epochs`"),
        ("epochs = 2", "epochs = 0", "optim.epochs and optim.batch must be at least 1"),
        ("height = 64", "height = 60", "height 60 is not a multiple of the model's stride 8"),
        ('"disc", ', "", r"data\.labels has 2 entries, the model has 3 classes"),
        (", [40, 40, 220]", "", r"data\.palette needs one RGB colour per class"),
        ("[optim]", "[solver]\nevaluations = [5, 4]\n[optim]", r"solver\.evaluations 5\.\.4"),
        ("[optim]", "[finish]\nevaluations = [0, 4]\n[optim]", r"finish\.evaluations 0\.\.4"),
        ("[optim]", "[solver]\nname = 'newton'\n[optim]", r"`\$\.solver\.name`"),
        ("[optim]", "[gradient]\nkind = 'exact'\n[optim]", r"`\$\.gradient\.kind`"),
        (
            "[optim]",
            "[gradient]\nsteps = 0\n[optim]",
            r"gradient\.steps holds 0, must be at least 1",
        ),
        ("[optim]", "[validation]\nevery = 0\n[optim]", r"validation\.every holds 0"),
        ("[optim]", "[validation]\ncurve = [1, 0]\n[optim]", r"validation\.curve holds 0"),
        (
            'task = "segmentation"',
            'task = "classification"\nhead_channels = [8, 8]\nfinal_channels = 9',
            "only segmentation can be trained so far",
        ),
    ],
)
def test_a_senseless_recipe_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(ConfigError, match=r"recipe\.toml: .*" + message):
        read_text(RECIPE.replace(old, new), tmp_path)


@pytest.mark.parametrize("raw", [b"[model", b"\xff\xfe", b"a = " + b"[" * 100_000])
def test_a_recipe_that_is_not_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"recipe\.toml: not valid TOML"):
        read_recipe(tmp_path / "recipe.toml")


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*absent\.toml: No such file"):
        read_recipe(tmp_path / "absent.toml")
