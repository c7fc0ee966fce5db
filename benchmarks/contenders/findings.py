"""What the figures of a model amount to: ratios with their intervals, and accuracy by rung."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders.research import EAGER
from mdeq_runtime.bench.statistics import Ratio, ratio

__all__ = ["Claim", "accuracy", "claims", "find", "ratio_of", "roofline_claims"]

Model = Mapping[str, Any]  # as versus.json has it
Found = Mapping[str, Any]
NEAR = 0.01  # of the metric that the converged answer has


@dataclass(frozen=True)
class Claim:
    """A ratio that was set as a goal.

    Attributes:
        text: of what to what.
        measured: the ratio; of memory it has no interval.
        most: whether ``goal`` is an upper bound.
    """

    text: str
    measured: Ratio
    goal: float
    most: bool

    @property
    def met(self) -> bool:
        value = self.measured.value
        return value <= self.goal if self.most else value >= self.goal

    def __str__(self) -> str:
        bound = f"at {'most' if self.most else 'least'} {self.goal:g}"
        exact = self.measured.low == self.measured.high
        shown = f"{self.measured.value:.2f}" if exact else str(self.measured)
        return f"{'met' if self.met else 'missed'}: {self.text}: {shown}, goal {bound}"


def find(model: Model, **wanted: Any) -> Found | None:
    """The first contender with these fields that was measured."""
    for found in model["contenders"]:
        if "skipped" not in found and all(found[key] == value for key, value in wanted.items()):
            return found  # type: ignore[no-any-return]
    return None


def ratio_of(above: Found, below: Found) -> Ratio:
    """Of the times of two contenders, round by round."""
    return ratio(above["wall_ms"], below["wall_ms"])


def claims(name: str, model: Model) -> list[Claim]:
    """The goals that concern a model, as far as what they need was measured."""
    research = find(model, name=EAGER)
    found: list[tuple[str, Found | None, Found | None, float, bool]] = []
    if name == "imagenet-small":
        for precision, beside, slower in (("fp32", 0.9, 30), ("int8", 1.5, 50)):
            warm = find(model, kind="ours", precision=precision, start="warm", evaluations=2)
            peer = find(model, name=f"ResNet-50, {precision}")
            text = f"a warm frame of 2 evaluations, {precision}"
            found.append((f"{text} / ResNet-50, {precision}", warm, peer, beside, True))
            found.append((f"research path / {text}", research, warm, slower, False))
    elif (cold := converged(model)) is not None:
        text = f"research path / {cold['name']}, whose answer is as good as the converged one's"
        found.append((text, research, cold, 12, False))
    made = [
        Claim(text, ratio_of(above, below), goal, most)
        for text, above, below, goal, most in found
        if above is not None and below is not None and above["wall_ms"] and below["wall_ms"]
    ]
    ours = find(model, kind="ours")
    if name == "cityscapes-small" and all(c and c["memory"] for c in (ours, research)):
        for key, what in (("above_base", "memory of a frame"), ("peak", "peak of the process")):
            value = ours["memory"][key] / research["memory"][key]  # type: ignore[index]
            measured = Ratio(value, value, value)
            made.append(Claim(f"{what} / research path's", measured, 0.25, True))
    return made


def roofline_claims(found: Mapping[str, Any]) -> list[Claim]:
    """The goals that ``roofline.py`` measures, from its JSON."""
    taken, product = found["milliseconds"], found["milliseconds"]["torch.mm"]
    first, *others = [name for name in taken if name.startswith("cell")]
    rate = ratio(
        [ms / found["product_gflop"] for ms in product],
        [ms / found["gflop"] for ms in taken[first]],
    )
    made = [Claim(f"rate of one evaluation of {found['model']} / torch.mm's", rate, 0.8, False)]
    return made + [
        Claim(f"{first} / {name}, one evaluation", ratio(taken[first], taken[name]), 1.8, False)
        for name in others
    ]


def converged(model: Model) -> Found | None:
    """The cold rung with the fewest evaluations whose metric is near that of the converged one."""
    scores = model["accuracy"]["cold"] if model.get("accuracy") else {}
    if not scores:
        return None
    best = max(scores.values())
    cold = [c for c in model["contenders"] if c["kind"] == "ours" and c["start"] == "cold"]
    good = [c for c in cold if scores.get(c["steps"], -1.0) >= best - NEAR and "skipped" not in c]
    return min(good, key=lambda c: sum(c["wall_ms"]), default=None)


def accuracy(bundle: Path, data: Path | None, threads: int) -> dict[str, Any] | None:
    """The metric by start and steps: of the graphs on ``data``, else what the model card has."""
    from edge_mdeq.bundle import open_bundle

    manifest = open_bundle(bundle).manifest
    segments = manifest.task == "segmentation"
    metric = "miou" if segments else "accuracy"
    if data is None:
        return from_card(manifest.metrics, metric)
    from mdeq_runtime.val import ValSettings, validate

    ignore = (11,) if data.name.lower().startswith("camvid") else (255,)
    split = "val" if (data / "val").is_dir() else "validation"
    report = validate(
        bundle, data, ValSettings(split=split, warm=segments, ignore=ignore, threads=threads)
    )
    found: dict[str, Any] = {"cold": {}, "warm": {}}
    for score in report.scores:
        found[score.start][score.steps] = round(score.value, 4)
    return {"metric": metric, "source": f"{report.images} images of {data.name}/{split}", **found}


def from_card(metrics: Mapping[str, float], metric: str) -> dict[str, Any] | None:
    """What was measured of the weights in training, in single precision."""
    found: dict[str, Any] = {"cold": {}, "warm": {}}
    for key, value in metrics.items():
        name, _, rest = key.partition("_")
        start, _, count = rest.partition("_")
        if name == metric and start in found:
            found[start][f"{count} fp32"] = value
    return {"metric": metric, "source": "the model card", **found} if found["cold"] else None
