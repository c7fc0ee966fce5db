"""Tuning for few evaluations: end to end on both tasks, its losses, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_data import LABELS, VOID, write_camvid, write_folder
from tiny_training import CLASSIFIER, SEGMENTER, log_of, same_weights, write_recipe
from torch import Tensor
from typer.testing import CliRunner

from edge_mdeq.cli import app, main
from edge_mdeq.config import ModelCard
from edge_mdeq.errors import ConfigError, DataError, WeightsError
from edge_mdeq.model import MDEQ
from edge_mdeq.training.equilibrium import normalise
from edge_mdeq.training.loop import train
from edge_mdeq.training.objective import make_objective
from edge_mdeq.training.recipe import Recipe
from edge_mdeq.training.tune import (
    Draw,
    TuneReport,
    TuneSettings,
    TuneTask,
    choose_recipe,
    distance,
    divergence,
    draw,
    iterate,
    tune,
)
from edge_mdeq.weights import load_weights, save_weights

Trained = tuple[Path, Path]  # weights, and the data that they were trained on
REFERENCE = 26


def train_on(recipe: Recipe, data: Path, out: Path) -> Path:
    """Weights whose iteration converges, roughly."""
    solver = replace(recipe.solver, evaluations=(4, 6))
    optim = replace(recipe.optim, epochs=10)
    return train(replace(recipe, solver=solver, optim=optim), data, out)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("segmenter")
    data = write_camvid(root / "data")
    return train_on(SEGMENTER, data, root / "run"), data


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("classifier")
    data = write_folder(root / "data")
    return train_on(CLASSIFIER, data, root / "run"), data


@pytest.fixture(params=["segmenter", "classifier"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Weights of either task and their data."""
    made: Trained = request.getfixturevalue(request.param)
    return made


def recipe_for(weights: Path, **changes: Any) -> Recipe:
    """The default recipe with fewer epochs."""
    options: dict[str, Any] = {"epochs": 3, "lr": 3e-3, "batch": 3, "ignore": (VOID,)} | changes
    return choose_recipe(weights, **options)


# End to end


@pytest.fixture(scope="module")
def tuned(
    segmenter: Trained, classifier: Trained, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, TuneReport]]:
    """The folder of a finished tuning for two evaluations and its report, by task."""
    done = {}
    for weights, data in (segmenter, classifier):
        before = {path: path.read_bytes() for path in weights.parent.glob("weights.*")}
        out = tmp_path_factory.mktemp("tuned")
        report = tune(weights, data, out, TuneSettings(2), recipe_for(weights))
        done[load_weights(weights)[1].model.task] = (out, report)
        assert {path: path.read_bytes() for path in before} == before  # the originals
    return done


TASKS = ["segmentation", "classification"]


@pytest.mark.parametrize("task", TASKS)
def test_it_leaves_weights_card_report_and_plot(
    tuned: dict[str, tuple[Path, TuneReport]], task: str
) -> None:
    assert sorted(p.name for p in tuned[task][0].iterdir()) == [
        "checkpoint.pt", "log.jsonl", "tensorboard", "tune.json", "tune.svg", "weights.json",
        "weights.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_report_has_a_value_before_and_after_at_every_count(
    tuned: dict[str, tuple[Path, TuneReport]], task: str
) -> None:
    out, report = tuned[task]
    starts = ("cold", "warm") if task == "segmentation" else ("cold",)
    counts = (1, 2, 3, 4, 8, REFERENCE)
    keys = {f"{start}_{count}" for start in starts for count in counts}
    assert report.before.keys() == keys == report.after.keys()
    assert (report.iterations, report.warm, report.reference) == (2, 1, REFERENCE)
    assert report.metric == {"segmentation": "miou", "classification": "accuracy"}[task]
    assert report.drop == report.before["cold_26"] - report.after["cold_26"]
    assert json.loads((out / "tune.json").read_text()) == {
        "metric": report.metric, "iterations": 2, "warm": 1, "reference": REFERENCE,
        "before": report.before, "after": report.after,
    }  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_report_s_values_are_those_of_both_weights(
    tuned: dict[str, tuple[Path, TuneReport]], segmenter: Trained, classifier: Trained, task: str
) -> None:
    out, report = tuned[task]
    weights, data = segmenter if task == "segmentation" else classifier
    objective = make_objective(recipe_for(weights), data)
    for path, values in ((weights, report.before), (out, report.after)):
        curve = objective.curve(load_weights(path)[0], (2, REFERENCE))
        for key, value in curve.items():
            key = key.removeprefix(f"{report.metric}_")
            assert values[key] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_the_card_is_the_original_s_but_for_what_changed(
    tuned: dict[str, tuple[Path, TuneReport]], segmenter: Trained, classifier: Trained, task: str
) -> None:
    out, report = tuned[task]
    original = load_weights((segmenter if task == "segmentation" else classifier)[0])[1]
    card = load_weights(out)[1]
    assert card.metrics == {
        f"{report.metric}_{key}": round(value, 4) for key, value in report.after.items()
    }
    assert "Tuned for 2 evaluations, 1 from a warm start." in card.provenance.notes
    notes = replace(card.provenance, notes=original.provenance.notes)
    assert replace(card, metrics=original.metrics, provenance=notes) == original


@pytest.mark.parametrize("task", TASKS)
def test_the_plot_is_a_picture_of_the_curves(
    tuned: dict[str, tuple[Path, TuneReport]], task: str
) -> None:
    out, _ = tuned[task]
    root = ET.parse(out / "tune.svg").getroot()
    assert root.tag.endswith("svg")
    lines = [e for e in root.iter() if re.fullmatch(r"line2d_\d+", e.get("id") or "")]
    assert len(lines) > 4  # ticks too
    assert "<dc:date>" not in (out / "tune.svg").read_text()


def test_the_answers_come_closer_to_the_converged_ones(segmenter: Trained, tmp_path: Path) -> None:
    """And the converged ones stay as good as they were."""
    weights, data = segmenter
    recipe = recipe_for(weights, epochs=8, lr=2e-3)
    recipe = replace(recipe, optim=replace(recipe.optim, warmup_steps=3, ema_decay=0.8))
    report = tune(weights, data, tmp_path, TuneSettings(1), recipe)
    untuned, after = load_weights(weights)[0].freeze(), load_weights(tmp_path)[0].freeze()
    val = make_objective(recipe, data).val_set
    image = torch.stack([torch.from_numpy(val[k][0]) for k in range(len(val))]) / 255
    teacher = answer(untuned, image, recipe, REFERENCE)
    gap = [float(divergence(answer(m, image, recipe, 1), teacher)) for m in (untuned, after)]
    assert gap[1] < 0.9 * gap[0]  # 0.3 to 0.75 of it, by the draws of training and tuning
    assert abs(report.drop) < 0.05


@torch.no_grad()
def answer(model: MDEQ, image: Tensor, recipe: Recipe, count: int) -> Tensor:
    """Logits after ``count`` plain evaluations from zero."""
    u = model.inject(normalise(image, recipe.input))
    logits: Tensor = model.readout(iterate(model.bind(u), model.zero_state(u), count))
    return logits


def test_without_a_learning_rate_nothing_changes(segmenter: Trained, tmp_path: Path) -> None:
    weights, data = segmenter
    recipe = recipe_for(weights, epochs=1)
    still = replace(recipe, optim=replace(recipe.optim, lr=0.0, freeze_norm=True))
    report = tune(weights, data, tmp_path, TuneSettings(1), still)
    assert report.after == pytest.approx(report.before, abs=1e-3)
    assert report.drop == pytest.approx(0, abs=1e-3)


class Stopped(BaseException):
    """Like a signal: nothing may catch it."""


def test_a_stopped_run_is_resumed_bit_for_bit(
    tuned: dict[str, tuple[Path, TuneReport]], segmenter: Trained, tmp_path: Path
) -> None:
    weights, data = segmenter
    whole, report = tuned["segmentation"]

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done > total // 2:
            raise Stopped

    settings, recipe = TuneSettings(2), recipe_for(weights)
    with pytest.raises(Stopped):
        tune(weights, data, tmp_path, settings, recipe, progress=stop)
    assert not (tmp_path / "weights.safetensors").exists()
    with pytest.raises(ConfigError, match="already holds a run"):
        tune(weights, data, tmp_path, settings, recipe)
    with pytest.raises(WeightsError, match=r"started with iterations 2.*resume with what"):
        tune(weights, data, tmp_path, TuneSettings(3, warm=1), recipe, resume=True)
    torch.manual_seed(99)
    again = tune(weights, data, tmp_path, settings, recipe, resume=True)
    assert again == report
    assert same_weights(tmp_path / "weights.safetensors", whole / "weights.safetensors")
    assert log_of(tmp_path) == log_of(whole)
    assert (tmp_path / "tune.svg").read_text().count("<path") == (
        (whole / "tune.svg").read_text().count("<path")
    )


# The task: teacher and student


def make_task(trained: Trained, settings: TuneSettings) -> tuple[TuneTask, Recipe, Tensor, Tensor]:
    """The task on a fixed batch: images in 0..1 and their targets, at the input's size."""
    weights, data = trained
    recipe = recipe_for(weights)
    model = load_weights(weights)[0]
    objective = make_objective(recipe, data)
    items = [objective.val_set[k] for k in range(2)]
    image = torch.stack([torch.from_numpy(image) for image, _ in items]) / 255
    target = (
        torch.as_tensor([0, 0])
        if isinstance(items[0][1], int)
        else torch.stack([torch.from_numpy(mask) for _, mask in items]).long()
    )
    return TuneTask(model, model.freeze(), recipe, settings), recipe, image, target


def total(found: dict[str, Tensor]) -> Tensor:
    """What the answers lack of the teacher's, and of agreeing with one another."""
    gaps = [divergence(found[name], found["target"]) for name in ("cold", "warm", "far")]
    return torch.stack(gaps).sum() + 0.5 * found["agree"]


def test_the_teacher_gets_no_gradient_and_never_changes(trained: Trained) -> None:
    task, _, image, _ = make_task(trained, TuneSettings(2))
    teacher = task.teacher[0]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert {id(p) for p in teacher.parameters()}.isdisjoint(id(p) for p in task.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    task.train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    found = task(image, image.flip(3), Draw(3, 1.0))
    assert not found["target"].requires_grad
    (total(found) + found["penalty"]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in task.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert torch.equal(task.converged(image), found["target"])


def test_the_teacher_s_answer_is_the_converged_one(trained: Trained) -> None:
    task, recipe, image, _ = make_task(trained, TuneSettings(2, tol=0.0))
    teacher = task.teacher[0]
    torch.testing.assert_close(task.converged(image), answer(teacher, image, recipe, REFERENCE))
    task.settings = replace(task.settings, tol=1e30)  # any residual will do
    torch.testing.assert_close(task.converged(image), answer(teacher, image, recipe, 1))


def test_the_student_s_answers_are_those_of_its_iterations(trained: Trained) -> None:
    task, recipe, image, _ = make_task(trained, TuneSettings(3, warm=2))
    task.eval()
    moved = image.roll(2, dims=3)
    found = {k: v.detach() for k, v in task(image, moved, Draw(4, 0.0)).items()}
    model = task.model
    torch.testing.assert_close(found["cold"], answer(model, image, recipe, 3))
    torch.testing.assert_close(found["far"], answer(model, image, recipe, 3 + 4 + 1))
    with torch.no_grad():
        u = model.inject(normalise(moved, recipe.input))
        last = iterate(model.bind(u), model.zero_state(u), 3 + 4)
        u = model.inject(normalise(image, recipe.input))
        warm = iterate(model.bind(u), last, 2)
        torch.testing.assert_close(found["warm"], model.readout(warm))
        cold = iterate(model.bind(u), model.zero_state(u), 3)
        goal = iterate(model.bind(u), cold, 5)
    torch.testing.assert_close(found["agree"], distance(cold, goal) + distance(warm, goal))
    assert float(found["penalty"]) == 0


def test_the_loss_falls_on_a_fixed_batch(trained: Trained) -> None:
    task, _, image, target = make_task(trained, TuneSettings(1))
    assert len(target) == len(image)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = total(task(image, image.roll(1, dims=3), Draw(3, 0.0)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert losses[3] < losses[0]


def test_the_divergence_is_kullback_and_leibler_s() -> None:
    have, want = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    p, q = want.softmax(dim=1), have.softmax(dim=1)
    expected = sum(
        float(p[b, k, x] * math.log(p[b, k, x] / q[b, k, x]))
        for b in range(3) for k in range(4) for x in range(2)
    )  # fmt: skip
    assert float(divergence(have, want)) == pytest.approx(expected / 6, rel=1e-5)
    assert float(divergence(want + 5, want)) == pytest.approx(0, abs=1e-6)


def test_a_weighted_divergence_counts_rare_classes_more() -> None:
    """Weights of one change nothing; a class of weight zero does not count at all."""
    have, want = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    plain = divergence(have, want)
    assert float(divergence(have, want, torch.full((4,), 7.0))) == pytest.approx(float(plain))
    sure = 50 * F.one_hot(torch.tensor([[0, 1], [0, 1]]), 4).permute(0, 2, 1).float()
    wrong = sure.flip(2)
    wrong[:, :, 0] = sure[:, :, 0]  # only where the target is class 1
    even, rare, none = (
        float(divergence(wrong, sure, torch.tensor([1.0, weight, 1, 1]))) for weight in (1, 9, 0)
    )
    assert even == pytest.approx(25, rel=1e-3)
    assert rare == pytest.approx(45, rel=1e-3)
    assert none == pytest.approx(0, abs=1e-3)


def test_the_distance_is_relative_per_sample() -> None:
    goal = (torch.full((2, 1, 2, 2), 3.0), torch.full((2, 4, 1, 1), 4.0))
    z = (goal[0].clone(), goal[1] * torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))
    assert float(distance(z, goal)) == pytest.approx(0.5 * 4 * 16 / (4 * 9 + 4 * 16))


def test_seed_and_step_decide_a_draw() -> None:
    settings = TuneSettings(2, far=(2, 4), jacobian=0.7, frequency=0.25)
    draws = [draw(settings, 0, step) for step in range(800)]
    assert [draw(settings, 0, step) for step in range(800)] == draws
    assert [draw(settings, 1, step) for step in range(800)] != draws
    assert {d.far for d in draws} == {2, 3, 4}
    assert {d.penalty for d in draws} == {0.0, 0.7}
    assert sum(d.penalty > 0 for d in draws) / 800 == pytest.approx(0.25, abs=0.05)


# Settings and recipes


def test_half_as_many_evaluations_suffice_from_a_warm_start_by_default() -> None:
    assert [TuneSettings(k).warm for k in (1, 2, 3, 8)] == [1, 1, 1, 4]
    assert TuneSettings(4, warm=3).warm == 3
    assert TuneSettings(6, warm=5).counts == (1, 2, 3, 4, 5, 6, 8, 26)


@pytest.mark.parametrize("iterations", [0, -1, 26, 27])
def test_iterations_must_be_fewer_than_the_reference_s(iterations: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"iterations is {iterations}, must be between 1 and .*26"
    ):
        TuneSettings(iterations)


def test_warm_evaluations_cannot_be_negative() -> None:
    with pytest.raises(ConfigError, match="warm is -1"):
        TuneSettings(2, warm=-1)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["label", "cold_weight", "warm_weight", "far_weight"])
def test_a_weight_that_makes_no_sense_is_refused(name: str, weight: float) -> None:
    with pytest.raises(ConfigError, match=f"the weight of '{name.removesuffix('_weight')}' is"):
        TuneSettings(2, **{name: weight})


def test_the_card_decides_model_and_input(segmenter: Trained, tmp_path: Path) -> None:
    weights, _ = segmenter
    other = replace(SEGMENTER, optim=replace(SEGMENTER.optim, epochs=9, batch=2, lr=1.0), seed=4)
    other = replace(other, model=replace(other.model, channels=(16, 16)))
    path = write_recipe(other, tmp_path / "recipe.toml")
    recipe = choose_recipe(weights, path)
    assert recipe.model == SEGMENTER.model
    assert (recipe.optim.epochs, recipe.optim.lr, recipe.seed) == (9, 1.0, 4)
    recipe = choose_recipe(weights, path, epochs=2, lr=0.1, batch=6, seed=5)
    assert (recipe.optim.epochs, recipe.optim.lr, recipe.optim.batch) == (2, 0.1, 6)
    assert recipe.seed == 5


def test_the_plain_iteration_is_tuned_whatever_the_recipe_was_trained_with(
    segmenter: Trained, tmp_path: Path
) -> None:
    solver = replace(SEGMENTER.solver, name="broyden", m=4)
    other = replace(SEGMENTER, solver=solver, gradient=replace(SEGMENTER.gradient, m=4))
    recipe = choose_recipe(segmenter[0], write_recipe(other, tmp_path / "recipe.toml"))
    assert (recipe.solver.name, recipe.solver.m, recipe.gradient.m) == ("fixed_point", 0, 0)


def test_without_a_recipe_the_task_decides_the_layout(trained: Trained) -> None:
    task = load_weights(trained[0])[1].model.task
    expected = {"segmentation": "camvid", "classification": "folder"}[task]
    assert choose_recipe(trained[0]).data.layout == expected


def test_a_layout_that_is_none_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"data\.layout 'voc' is none of camvid, cityscapes"):
        choose_recipe(trained[0], layout="voc")


def test_a_card_without_names_and_colours_will_do(segmenter: Trained, tmp_path: Path) -> None:
    """As imported weights may have."""
    model, card = load_weights(segmenter[0])
    save_weights(model, ModelCard(card.model, card.input), tmp_path / "bare.safetensors")
    recipe = recipe_for(tmp_path / "bare.safetensors", epochs=1)
    tune(tmp_path / "bare.safetensors", segmenter[1], tmp_path / "out", TuneSettings(1), recipe)
    _, tuned_card = load_weights(tmp_path / "out")
    assert (tuned_card.labels, tuned_card.palette) == ((), ())


# What is refused


def test_the_weights_folder_is_no_place_for_the_tuned(segmenter: Trained, tmp_path: Path) -> None:
    model, card = load_weights(segmenter[0])
    weights = tmp_path / "weights.safetensors"
    save_weights(model, card, weights)
    before = weights.read_bytes()
    for given in (weights, tmp_path):
        with pytest.raises(ConfigError, match="holds the weights to tune; choose another folder"):
            tune(given, segmenter[1], tmp_path, TuneSettings(1), recipe_for(weights))
    assert weights.read_bytes() == before


def test_bad_data_is_refused_before_tuning(classifier: Trained, tmp_path: Path) -> None:
    weights, _ = classifier
    data = write_folder(tmp_path / "data", (*LABELS[:2], "cone"))
    with pytest.raises(DataError, match=r"without a folder: \['box'\].*no class: \['cone'\]"):
        tune(weights, data, tmp_path / "out", TuneSettings(1), recipe_for(weights))
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_out_of_range_say_which_option_ignores_them(
    segmenter: Trained, tmp_path: Path
) -> None:
    weights, data = segmenter
    recipe = recipe_for(weights, ignore=(255,))
    with pytest.raises(DataError, match=r"holds labels \[7\], out of range .*--ignore"):
        tune(weights, data, tmp_path / "out", TuneSettings(1), recipe)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        choose_recipe(tmp_path / "absent.safetensors")


# The command


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "100"}
    )


def options(trained: Trained, out: Path) -> list[str | Path]:
    return [
        "tune", trained[0], "--iterations", "1", "--data", trained[1], "-o", out, "--epochs", "1",
        "--batch", "3", "--ignore", str(VOID),
    ]  # fmt: skip


def test_the_command_tunes_and_names_the_next_one(trained: Trained, tmp_path: Path) -> None:
    result = invoke(*options(trained, tmp_path), "--max-metric-drop", "1")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "tune.json").read_text())
    for key, value in report["after"].items():
        start, count = key.split("_")
        assert re.search(rf"{start} +│ +{count} │ +{report['before'][key]:.4f} │ +{value:.4f}",
                         result.output)  # fmt: skip
    assert "tune.json and tune.svg" in result.output
    weights = tmp_path / "weights.safetensors"
    assert f"next: edge-mdeq export {weights} -o tuned.mdeq --iterations 1" in result.output


def test_the_command_s_weights_are_those_of_the_run(segmenter: Trained, tmp_path: Path) -> None:
    """A checkpoint remembers what it was started for."""
    chosen = ["--label", "0.5", "--cold-weight", "3", "--warm-weight", "1", "--far-weight", "2"]
    result = invoke(*options(segmenter, tmp_path), *chosen, "--max-metric-drop", "1")
    assert result.exit_code == 0, result.output
    aims = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["aims"]
    assert [aims[f"{name}_weight"] for name in ("cold", "warm", "far")] == [3, 1, 2]
    assert aims["label"] == 0.5


def test_the_command_fails_if_the_converged_answer_loses_too_much(
    segmenter: Trained, tmp_path: Path
) -> None:
    """Every change is more than a drop of -2; what was made is kept to be looked at."""
    result = invoke(*options(segmenter, tmp_path), "--max-metric-drop", "-2")
    assert result.exit_code == 1
    assert "the converged miou fell by" in result.output
    assert "try a smaller --lr or more --iterations" in result.output
    assert (tmp_path / "weights.safetensors").exists()


def test_the_command_takes_several_void_values_in_a_row(
    segmenter: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["edge-mdeq", *map(str, options(segmenter, tmp_path / "out")), "9", "--iterations", "26"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "error: iterations is 26, must be between 1 and the reference's 26" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_the_command_s_help_describes_the_weights() -> None:
    shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", invoke("tune", "--help").output).split())
    assert "weights PATH A .safetensors file with its .json beside it" in shown


def test_the_command_s_help_describes_every_option() -> None:
    shown = " ".join(re.sub(r"[│╭╰─╮╯]", " ", invoke("tune", "--help").output).split())
    for text in (
        "Evaluations of f from a cold start that should suffice.",
        "A labelled dataset's folder.",
        "Go on with the run that OUT holds.",
        "How much the converged answer may lose.",
    ):
        assert text in shown
