"""A run: deterministic, resumable after a real kill, stopped in time, and never half-written."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import write_camvid, write_folder
from tiny_training import (
    CLASSIFIER,
    EPOCH_STEPS,
    SEGMENTER,
    command,
    environment,
    log_of,
    run_command,
    same_weights,
    scalars,
    write_recipe,
)

from edge_mdeq.cli import main
from edge_mdeq.errors import ConfigError, TrainingError, WeightsError
from edge_mdeq.training.checkpoint import load_checkpoint
from edge_mdeq.training.loop import train
from edge_mdeq.training.recipe import JacobianConfig, LossConfig, Recipe
from edge_mdeq.training.run import seed_step

Run = tuple[Path, Path]  # the dataset, and the folder of a finished run on it


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("segmented")
    train(SEGMENTER, write_camvid(root / "data"), root / "run")
    return root / "data", root / "run"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photographs"))


# Determinism


def test_the_seed_decides_a_run(segmented: Run, tmp_path: Path) -> None:
    data, out = segmented
    torch.manual_seed(99)
    random.seed(99)
    assert same_weights(train(SEGMENTER, data, tmp_path / "again"), out / "weights.safetensors")
    assert log_of(tmp_path / "again") == log_of(out)


def test_another_seed_gives_other_weights(segmented: Run, tmp_path: Path) -> None:
    data, out = segmented
    other = train(replace(SEGMENTER, seed=1), data, tmp_path / "other")
    assert not same_weights(other, out / "weights.safetensors")


def test_near_seeds_and_steps_give_unrelated_numbers() -> None:
    draws = []
    for seed, step, micro, rank in ((0, 0, 0, -1), (1, 0, 0, -1), (0, 1, 0, -1), (0, 0, 1, -1),
                                    (0, 0, 0, 0), (0, 0, 0, 1)):  # fmt: skip
        seed_step(seed, step, micro, rank)
        draws.append(torch.randn(1000))
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlations.abs().max() < 0.15  # 4.7 standard deviations


# Stopping and resuming


class Stopped(BaseException):
    """Like a signal: nothing in the loop may catch it."""


def stop_after(steps: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        if done > steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_a_resumed_run_ends_with_the_very_weights_of_an_uninterrupted_one(
    segmented: Run, tmp_path: Path, epochs_done: int
) -> None:
    data, whole = segmented
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):  # in the middle of the epoch that follows
        train(SEGMENTER, data, out, progress=stop_after(epochs_done * EPOCH_STEPS + 1))
    torch.manual_seed(99)
    random.seed(99)
    resumed = train(SEGMENTER, data, out, resume=True)
    assert same_weights(resumed, whole / "weights.safetensors")
    assert log_of(out) == log_of(whole)


def test_a_finished_run_can_be_resumed_for_its_weights(segmented: Run, tmp_path: Path) -> None:
    data, whole = segmented
    out = tmp_path / "run"
    out.mkdir()
    for name in ("checkpoint.pt", "log.jsonl"):
        (out / name).write_bytes((whole / name).read_bytes())
    assert same_weights(train(SEGMENTER, data, out, resume=True), whole / "weights.safetensors")


EPOCHS = 10  # of the runs that are killed
SCHEDULED = JacobianConfig(
    weight=0.2, frequency=0.5, pretrain_weight=0.05, growth=0.1, growth_steps=7, stop_epoch=8,
    jitter=(-1, 1),
)  # fmt: skip
KILLED = {
    "segmentation": SEGMENTER,
    "classification": CLASSIFIER,
    "SGD and a Jacobian schedule": replace(
        SEGMENTER,
        optim=replace(SEGMENTER.optim, name="sgd", lr=0.05, nesterov=True, accumulate=2),
        jacobian=SCHEDULED,
        model=replace(SEGMENTER.model, dropout=0.1),
    ),
}


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_process_s_run_is_resumed_bit_for_bit(
    name: str, segmented: Run, photographs: Path, tmp_path: Path
) -> None:
    recipe = KILLED[name]
    recipe = replace(recipe, optim=replace(recipe.optim, epochs=EPOCHS))
    data = photographs if recipe.model.task == "classification" else segmented[0]
    path = write_recipe(recipe, tmp_path / "recipe.toml")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = train(recipe, data, whole)

    started = time.monotonic()
    process = subprocess.Popen(
        command("train", path, "--data", data, "--out", out),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < started + 120
        time.sleep(0.002)
    time.sleep(random.Random(name).uniform(0, 0.3))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = load_checkpoint(out / "checkpoint.pt")["epoch"]
    assert 1 <= done < EPOCHS
    assert not (out / "weights.safetensors").exists()

    time.sleep(1)  # TensorBoard orders files by the second they were begun in
    resumed = train(recipe, data, out, resume=True)
    assert same_weights(resumed, uninterrupted)
    assert log_of(out) == log_of(whole)
    assert scalars(out, "train/loss") == scalars(whole, "train/loss")
    assert scalars(out, "epoch/residual") == scalars(whole, "epoch/residual")


def test_what_a_kill_left_half_written_is_removed(segmented: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(SEGMENTER, segmented[0], out, progress=stop_after(EPOCH_STEPS + 1))
    (out / ".checkpoint.pt.123.tmp").write_bytes(bytes(1000))
    with (out / "log.jsonl").open("a") as log:
        log.write('{"epoch": 2, "step"')
    train(SEGMENTER, segmented[0], out, resume=True)
    assert not list(out.glob(".*"))
    assert log_of(out) == log_of(segmented[1])


def test_a_second_run_into_the_same_folder_is_refused(segmented: Run) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run .*--resume, or choose another"):
        train(SEGMENTER, *segmented)


def test_resuming_without_a_checkpoint_is_refused(segmented: Run, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no checkpoint at .*; start without --resume"):
        train(SEGMENTER, segmented[0], tmp_path / "new", resume=True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (replace(SEGMENTER, model=replace(SEGMENTER.model, channels=(16, 16))), "size mismatch"),
        (replace(SEGMENTER, optim=replace(SEGMENTER.optim, name="sgd")), "momentum"),
        (
            replace(SEGMENTER, optim=replace(SEGMENTER.optim, batch=3)),
            "9 steps are not 3 epochs of this data",
        ),
    ],
    ids=["model", "optimizer", "batch"],
)
def test_resuming_another_run_is_refused(segmented: Run, recipe: Recipe, message: str) -> None:
    before = (segmented[1] / "checkpoint.pt").read_bytes()
    with pytest.raises(WeightsError, match=rf"(?s)checkpoint\.pt is of a run with .*{message}"):
        train(recipe, *segmented, resume=True)
    assert (segmented[1] / "checkpoint.pt").read_bytes() == before


# Batches


def test_a_batch_larger_than_the_data_is_refused(segmented: Run, tmp_path: Path) -> None:
    greedy = replace(SEGMENTER, optim=replace(SEGMENTER.optim, batch=100))
    with pytest.raises(ConfigError, match=r"optim\.batch 100 exceeds the 6 images"):
        train(greedy, segmented[0], tmp_path / "run")


@pytest.fixture(scope="module")
def started(segmented: Run, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose norms know the data: the sums of fresh ones are too small to be compared."""
    out = tmp_path_factory.mktemp("started")
    for recipe, data in ((SEGMENTER, segmented[0]), (CLASSIFIER, photographs)):
        train(replace(recipe, optim=replace(recipe.optim, epochs=6)), data, out / recipe.model.task)
    return out


@pytest.mark.parametrize("recipe", [SEGMENTER, CLASSIFIER], ids=["segmentation", "classification"])
def test_accumulated_micro_batches_take_the_steps_of_the_whole(
    segmented: Run, photographs: Path, started: Path, tmp_path: Path, recipe: Recipe
) -> None:
    """Where norms are frozen, which whole batches would share; without Lovasz, which is no sum.

    SGD, as Adam divides what is nearly zero by itself, and so blows differences of rounding up.
    """
    data = photographs if recipe is CLASSIFIER else segmented[0]
    recipe = replace(
        recipe,
        optim=replace(recipe.optim, epochs=7, name="sgd", lr=2e-3, freeze_norm=True),
        jacobian=JacobianConfig(weight=0.0),
        loss=LossConfig("sqrt", lovasz=0.0),
    )
    losses = {}
    for parts in (1, 2):
        out = tmp_path / str(parts)
        optim = replace(recipe.optim, accumulate=parts)
        train(replace(recipe, optim=optim), data, out, init=started / recipe.model.task)
        losses[parts] = torch.tensor([value for _, value in scalars(out, "train/loss")])
    assert len(losses[1]) == 7 * EPOCH_STEPS
    torch.testing.assert_close(losses[2], losses[1], atol=1e-4, rtol=0)
    assert losses[1].std() > 1e-2  # they do differ from step to step


# Runs that go wrong


def kept(out: Path) -> bytes:
    return (out / "checkpoint.pt").read_bytes()


@pytest.fixture
def one_epoch(segmented: Run, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Data, and the folder of a run that was stopped in its second epoch."""
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(SEGMENTER, segmented[0], out, progress=stop_after(EPOCH_STEPS + 1))
    return segmented[0], out


def test_a_loss_that_is_not_finite_stops_the_run_with_its_last_checkpoint(
    one_epoch: Run, segmented: Run
) -> None:
    data, out = one_epoch
    before = kept(out)
    wild = replace(SEGMENTER, optim=replace(SEGMENTER.optim, lr=1e30, clip_norm=0.0))
    with pytest.raises(
        TrainingError,
        match=r"training diverged: the loss was (nan|inf) at step 5 \(epoch 2\); .*checkpoint\.pt "
        r"is as it was\. Try a smaller optim\.lr.*then go on with --resume",
    ):
        train(wild, data, out, resume=True)
    assert kept(out) == before
    assert [entry["epoch"] for entry in log_of(out)] == [1]
    assert same_weights(
        train(SEGMENTER, data, out, resume=True), segmented[1] / "weights.safetensors"
    )


def test_weights_that_are_not_finite_are_never_kept(segmented: Run, tmp_path: Path) -> None:
    """The last step of an epoch spoils them after its loss was found to be well."""
    optim = replace(SEGMENTER.optim, name="sgd", batch=6, lr=3e38, weight_decay=10.0, clip_norm=0)
    wild = replace(SEGMENTER, optim=optim)
    with pytest.raises(
        TrainingError, match=r"weights are NaN or infinite at step 1 \(epoch 1\); no epoch was fin"
    ):
        train(wild, segmented[0], tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_command_says_so_in_a_line(
    segmented: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wild = replace(SEGMENTER, optim=replace(SEGMENTER.optim, lr=1e30, clip_norm=0.0))
    path = write_recipe(wild, tmp_path / "recipe.toml")
    data, out = str(segmented[0]), str(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["edge-mdeq", "train", str(path), "--data", data, "--out", out])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "error: training diverged: the loss was" in capsys.readouterr().err


def test_a_disk_that_fills_up_stops_the_run_with_its_last_checkpoint(
    segmented: Run, small_disk: Path, tmp_path: Path
) -> None:
    """A second checkpoint has no room beside the first one; with more room the run goes on."""
    out = small_disk / "run"
    path = write_recipe(SEGMENTER, tmp_path / "recipe.toml")
    result = run_command("train", path, "--data", segmented[0], "--out", out)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "go on with --resume" in result.stderr
    assert "error: cannot write" in result.stderr
    assert load_checkpoint(out / "checkpoint.pt")["epoch"] == 1
    assert not list(out.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    resumed = train(SEGMENTER, segmented[0], out, resume=True)
    assert same_weights(resumed, segmented[1] / "weights.safetensors")
    assert log_of(out) == log_of(segmented[1])
