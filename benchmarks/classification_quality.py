"""The sample classifier against a ResNet-18 trained from scratch: same images, augmentation, epochs
and schedule, and for the ResNet a sweep of its own over optimizers and learning rates.

    python benchmarks/classification_quality.py --data clothing --out out/classification
        [--recipe samples/recipes/clothing-small.toml] [--seeds 0 1 2]
        [--sweep adamw:5e-4 adamw:1e-3 ... muon:2e-3] [--precision bf16-mixed]
        [--only mdeq|resnet] [--json FILE]

The sweep's best is picked by validation accuracy, which favours the ResNet. Every run goes on where
it was when the command is started again. It takes hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from peers import resnet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edge_mdeq.config import convert
from edge_mdeq.training.equilibrium import normalise
from edge_mdeq.training.evaluate import EVALUATION_BATCH, accuracy, evaluate_classifier
from edge_mdeq.training.loop import train
from edge_mdeq.training.objective import Classification
from edge_mdeq.training.recipe import OptimConfig, Recipe, read_recipe
from edge_mdeq.training.run import CHECKPOINT, Run, make_fabric, open_folder, seed_step
from edge_mdeq.weights import load_weights

COUNTS = (1, 2, 3, 4, 8, 16, 26)
SWEEP = ["adamw:2.5e-4", "adamw:5e-4", "adamw:1e-3", "adamw:2e-3", "muon:1e-3", "muon:2e-3"]


def train_resnet(recipe: Recipe, data: Path, out: Path, precision: str) -> dict[str, float]:
    """Train a ResNet-18 by the recipe's optimizer, schedule and augmentation; its final figures."""
    result = out / "result.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    resume = (out / CHECKPOINT).exists()
    open_folder(out, resume)
    objective = Classification(recipe, data)
    fabric = make_fabric(1, precision)
    seed_step(recipe.seed, 0)
    network = resnet(18, recipe.model.classes).to(fabric.device)
    run = Run(fabric, network, network, recipe, objective, out)
    if resume:
        run.restore()

    def losses(image: Tensor, target: Tensor, step: int, count: Tensor) -> dict[str, Tensor]:
        logits = run.task(normalise(image, recipe.input))
        loss = objective.loss(logits.float(), target, count)
        return {"total": loss, "loss": loss}

    run.go(losses, lambda: score_resnet(run.average, objective, recipe))
    figures = score_resnet(run.average, objective, recipe)
    result.write_text(json.dumps(figures))
    return figures


@torch.no_grad()
def score_resnet(network: nn.Module, objective: Classification, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the validation split."""
    network.eval()
    loader = DataLoader(objective.val_set, EVALUATION_BATCH)
    answers = ((network(normalise(image.float() / 255, recipe.input)), y) for image, y in loader)
    _, balanced, share = accuracy(answers, recipe.model.classes)
    return {"accuracy": share, "balanced": balanced}


def train_mdeq(recipe: Recipe, data: Path, out: Path, precision: str) -> dict[str, float]:
    """Train the recipe as ``edge-mdeq train`` does; accuracy at each count."""
    weights = out / "weights.safetensors"
    if not weights.exists():
        train(recipe, data, out, (out / "checkpoint.pt").exists(), precision=precision)
    model, card = load_weights(weights)
    val_set = Classification(recipe, data).val_set
    scores = {count: evaluate_classifier(model, val_set, card.input, count) for count in COUNTS}
    figures = {f"accuracy_{count}": score.accuracy for count, score in scores.items()}
    return figures | {"accuracy": scores[8].accuracy, "balanced": scores[8].balanced}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("samples/recipes/clothing-small.toml"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sweep", nargs="*", default=SWEEP, metavar="OPTIMIZER:RATE")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--only", choices=["mdeq", "resnet"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recipe = read_recipe(args.recipe)
    rows: dict[str, list[dict[str, float]]] = {}
    if args.only != "resnet":
        rows["MDEQ, 8 evaluations"] = [
            train_mdeq(replace(recipe, seed=s), args.data, args.out / f"mdeq-{s}", args.precision)
            for s in args.seeds
        ]
    if args.only != "mdeq":
        rows["ResNet-18"] = sweep(recipe, args)
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def sweep(recipe: Recipe, args: argparse.Namespace) -> list[dict[str, float]]:
    """The ResNet at every setting with the first seed, and at the best one with all."""

    def run(setting: str, seed: int) -> dict[str, float]:
        name, rate = setting.split(":")
        optim = convert(
            {**msgspec.to_builtins(recipe.optim), "name": name, "lr": float(rate)}, OptimConfig
        )
        out = args.out / f"resnet18-{name}-{rate}-{seed}"
        return train_resnet(replace(recipe, seed=seed, optim=optim), args.data, out, args.precision)

    first = {setting: run(setting, args.seeds[0]) for setting in args.sweep}
    for setting, figures in first.items():
        print(f"ResNet-18, {setting}: {figures['accuracy']:.4f}")
    best = max(first, key=lambda setting: first[setting]["accuracy"])
    return [first[best], *(run(best, seed) for seed in args.seeds[1:])]


def print_table(rows: dict[str, list[dict[str, float]]]) -> None:
    """A row per network and, for the MDEQ, per count."""
    table = Table(title="validation accuracy, from scratch", title_justify="left")
    for column in ("network", "each seed", "mean", "balanced"):
        table.add_column(column)
    for name, results in rows.items():
        values = [figures["accuracy"] for figures in results]
        balanced = statistics.mean(figures["balanced"] for figures in results)
        each = " ".join(f"{value:.4f}" for value in values)
        table.add_row(name, each, f"{statistics.mean(values):.4f}", f"{balanced:.4f}")
        for count in COUNTS:
            key = f"accuracy_{count}"
            if key in results[0]:
                values = [figures[key] for figures in results]
                each = " ".join(f"{value:.4f}" for value in values)
                table.add_row(f"  {count} evaluations", each, f"{statistics.mean(values):.4f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
