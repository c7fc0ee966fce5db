"""Tuning for few evaluations: end to end on both tasks, and what it refuses."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import LABELS, write_folder
from tiny_training import log_of, same_weights
from tuning import REFERENCE, Trained, answer, recipe_for

from edge_mdeq.errors import ConfigError, DataError, WeightsError
from edge_mdeq.training.objective import make_objective
from edge_mdeq.training.tune import TuneReport, TuneSettings, choose_recipe, divergence, tune
from edge_mdeq.weights import load_weights, save_weights


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
