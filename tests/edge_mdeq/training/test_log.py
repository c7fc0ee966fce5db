"""The logs: a line per epoch, and TensorBoard's event files as TensorBoard reads them."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_camvid, write_folder
from tiny_training import CLASSIFIER, EPOCH_STEPS, SEGMENTER, log_of, scalars

from edge_mdeq.errors import TrainingError
from edge_mdeq.training.log import RunLog
from edge_mdeq.training.loop import train
from edge_mdeq.training.schedule import learning_rate

STEPS = list(range(1, 3 * EPOCH_STEPS + 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished segmentation run of three epochs."""
    root = tmp_path_factory.mktemp("run")
    train(SEGMENTER, write_camvid(root / "data"), root / "run")
    return root / "run"


@pytest.mark.parametrize("name", ["loss", "lr", "residual", "jacobian"])
def test_tensorboard_has_every_step_s_figures(run: Path, name: str) -> None:
    found = scalars(run, f"train/{name}")
    assert [step for step, _ in found] == STEPS
    for entry in log_of(run):  # an epoch's line is the mean over its steps
        steps = [value for step, value in found if 0 <= entry["step"] - step < EPOCH_STEPS]
        assert entry[name] == pytest.approx(sum(steps) / EPOCH_STEPS, rel=1e-5)


def test_the_learning_rate_is_that_of_the_schedule(run: Path) -> None:
    for step, value in scalars(run, "train/lr"):
        assert value == pytest.approx(learning_rate(SEGMENTER, step - 1, EPOCH_STEPS))


@pytest.mark.parametrize("name", ["miou", "val_residual"])
def test_tensorboard_has_the_validation_s_figures(run: Path, name: str) -> None:
    expected = [(entry["step"], entry[name]) for entry in log_of(run) if name in entry]
    found = scalars(run, f"epoch/{name}")
    assert [step for step, _ in found] == [6, 9] == [step for step, _ in expected]
    assert [x for _, x in found] == pytest.approx([x for _, x in expected])


def test_so_it_has_a_classifier_s(tmp_path: Path) -> None:
    recipe = replace(CLASSIFIER, optim=replace(CLASSIFIER.optim, epochs=2))
    train(recipe, write_folder(tmp_path / "data"), tmp_path / "run")
    for name in ("accuracy", "balanced_accuracy"):
        ((step, value),) = scalars(tmp_path / "run", f"epoch/{name}")
        assert step == 2 * EPOCH_STEPS
        assert value == pytest.approx(log_of(tmp_path / "run")[-1][name])


def write(out: Path, epochs_done: int, steps_done: int, last: int, offset: float) -> None:
    """Log from where a run is to step ``last``, three steps an epoch, values with an offset."""
    log = RunLog(out, epochs_done, steps_done)
    for step in range(steps_done + 1, last + 1):
        log.step(step, {"loss": offset + step})
        if step % 3 == 0:
            log.epoch(step, {"epoch": step // 3, "loss": offset + step})
    log.close()


def test_what_a_resumed_run_does_again_is_written_once(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, 8, 0.0)  # the checkpoint of its second epoch could not be written
    time.sleep(1)  # TensorBoard orders files by the second they were begun in
    write(tmp_path, 1, 3, 9, 0.5)
    expected = [(step, step + 0.5 * (step > 3)) for step in range(1, 10)]
    assert scalars(tmp_path, "train/loss") == expected
    assert scalars(tmp_path, "epoch/loss") == [(3, 3.0), (6, 6.5), (9, 9.5)]
    assert [(e["epoch"], e["loss"]) for e in log_of(tmp_path)] == [(1, 3.0), (2, 6.5), (3, 9.5)]


def test_a_run_that_starts_anew_after_a_kill_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, 4, 0.0)
    time.sleep(1)
    write(tmp_path, 0, 0, 3, 0.5)
    assert scalars(tmp_path, "train/loss") == [(1, 1.5), (2, 2.5), (3, 3.5)]
    assert [entry["loss"] for entry in log_of(tmp_path)] == [3.5]


def test_everything_is_on_disk_when_an_epoch_is_over(tmp_path: Path) -> None:
    """What a kill right afterwards finds: nothing was closed."""
    log = RunLog(tmp_path, 0, 0)
    for step in (1, 2, 3):
        log.step(step, {"loss": float(step)})
    log.epoch(3, {"epoch": 1, "loss": 2.0})
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"epoch": 1, "loss": 2.0}
    log.close()


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(None, 0, 0)
    log.step(1, {"loss": 1.0})
    log.epoch(1, {"epoch": 1})
    log.close()
    assert list(tmp_path.iterdir()) == []


def fill(disk: Path) -> None:
    """Leave no room on a file system."""
    with suppress(OSError), (disk / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_full_disk_is_named(small_disk: Path) -> None:
    log = RunLog(small_disk, 0, 0)
    fill(small_disk)

    def go_on() -> None:
        for step in range(10_000):
            log.epoch(step, {"epoch": step, "loss": 1.0})

    with pytest.raises(
        TrainingError, match=r"cannot write to .*No space left on device.*go on with --resume"
    ):
        go_on()
    log.close()
