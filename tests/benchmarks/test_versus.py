"""What is compared computes the same thing, takes turns, and is reported as it was measured."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import mobile_peers
import numpy as np
import performance_page
import pytest
import torch
from contenders import AbsentError, Case, Contender, lineup
from contenders.findings import claims, converged, from_card, roofline_claims
from contenders.process import measure
from contenders.report import COLUMNS, rows
from contenders.research import EAGER
from contenders.rounds import FEWEST, MOST, Entrant, compete
from numpy.typing import NDArray


@pytest.mark.parametrize(
    ("network", "published"),
    [
        (mobile_peers.mobilenet_v3_large, 5.4e6),
        (mobile_peers.efficientnet_lite0, 4.7e6),
    ],
)
def test_the_small_networks_have_the_published_sizes(network: Any, published: float) -> None:
    with torch.device("meta"):
        made = network()
        assert made(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(published, rel=0.02)


@pytest.fixture(scope="module")
def case(
    classifier_weights: Path, classifier_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    folder = tmp_path_factory.mktemp("versus")
    return Case("tiny-classifier", classifier_weights, classifier_bundle, folder, threads=1)


@pytest.fixture(scope="module")
def image(case: Case) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*case.size, 3), dtype=np.uint8)


def residual_of(case: Case, name: str, image: NDArray[np.uint8], frames: int = 1) -> float:
    contender = next(c for c in lineup(case) if c.name == name)
    try:
        answer = contender.prepare()
        for _ in range(frames):
            found = answer(image)
    except AbsentError as reason:
        pytest.skip(str(reason))
    assert found is not None
    return found


def test_every_rung_stands_in_the_lineup_cold_and_warm(case: Case) -> None:
    found = {(c.steps, c.start) for c in lineup(case) if c.kind == "ours"}
    assert found == {(f"{n} fp32", start) for n in (1, 2, 4) for start in ("cold", "warm")}
    names = [contender.name for contender in lineup(case)]
    assert len(names) == len(set(names))


def test_a_warm_rung_goes_on_where_a_cold_one_starts_again(
    case: Case, image: NDArray[np.uint8]
) -> None:
    """Two warm frames of one picture are as many evaluations as one cold frame of twice as many."""
    warm = residual_of(case, "edge-mdeq, 2 fp32, warm", image, frames=2)
    cold = residual_of(case, "edge-mdeq, 2 fp32, cold", image, frames=2)
    longer = residual_of(case, "edge-mdeq, 4 fp32, cold", image)
    assert warm == pytest.approx(longer, rel=1e-3)
    assert warm < cold


def test_both_broydens_find_the_equilibrium(case: Case, image: NDArray[np.uint8]) -> None:
    assert residual_of(case, EAGER, image) < 1e-4
    assert 1e-5 < residual_of(case, "... stopped at 1e-3", image) <= 1e-3


def test_torchdeq_finds_the_same_equilibrium(case: Case, image: NDArray[np.uint8]) -> None:
    assert residual_of(case, "TorchDEQ, Broyden, published steps", image) < 1e-3


def test_openvino_computes_what_onnx_runtime_does(case: Case, image: NDArray[np.uint8]) -> None:
    ours = residual_of(case, "edge-mdeq, 2 fp32, warm", image, frames=2)
    assert residual_of(case, "OpenVINO on our graph, 2 fp32", image, 2) == pytest.approx(
        ours, rel=1e-3
    )


def test_memory_is_that_of_a_process_with_nothing_else(case: Case) -> None:
    contender = next(c for c in lineup(case) if c.name == "edge-mdeq, 1 fp32, cold")
    found = measure(case, contender)
    assert 0 < found["above_base"] < found["peak"]
    with pytest.raises(AbsentError):
        measure(case, Contender("nobody", "ours", lambda: None))  # type: ignore[arg-type,return-value]


def test_contenders_take_turns_and_none_counts_more_often() -> None:
    order: list[str] = []

    def answer(name: str, image: object) -> None:
        order.append(name)

    entrants = [Entrant(Contender(n, "ours", lambda: None), partial(answer, n)) for n in "abc"]  # type: ignore[arg-type,return-value]
    rounds = compete(entrants, [np.zeros((1, 1, 3), np.uint8)], seconds=0.0)
    assert rounds == FEWEST
    assert [len(entrant.wall) for entrant in entrants] == [FEWEST] * 3
    first = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    turns = ["".join(first[k : k + 3]) for k in range(3, len(first) - 2, 3)]
    assert len(set(turns)) > 1  # the order is drawn anew
    assert compete(entrants, [np.zeros((1, 1, 3), np.uint8)], seconds=600.0) == MOST


def found(name: str, kind: str, ms: list[float], **more: Any) -> dict[str, Any]:
    plain = {
        "precision": "fp32", "start": "cold", "evaluations": 2, "steps": "", "cpu_ms": 2.0,
        "residual": None, "memory": None,
    }  # fmt: skip
    return {"name": name, "kind": kind, "wall_ms": ms, **plain, **more}


def report() -> dict[str, Any]:
    """A comparison of four, of which one failed, with figures that can be checked by hand."""
    model = {
        "size": [64, 96],
        "published_evaluations": 27,
        "notes": ["its weights are drawn"],
        "rounds": 4,
        "accuracy": {"metric": "miou", "source": "the model card",
                     "cold": {"1 fp32": 0.3, "2 fp32": 0.575, "8 fp32": 0.58}, "warm": {}},
        "contenders": [
            found("edge-mdeq, 2 fp32, cold", "ours", [10, 11, 10, 9], steps="2 fp32",
                  memory={"above_base": 40_000_000, "peak": 120_000_000}),
            found("edge-mdeq, 8 fp32, cold", "ours", [40, 44, 40, 36], steps="8 fp32"),
            found(EAGER, "research", [200, 220, 200, 180]),
            found("ResNet-50, fp32", "network", [20, 22, 20, 18], start=""),
            found("OpenVINO on our graph, 2 fp32", "openvino", [], skipped="not installed"),
        ],
    }  # fmt: skip
    machine = {"system": "Linux x86_64", "cores": 2, "processor": "A CPU", "instructions": ["AVX2"]}
    return {
        "format": "edge-mdeq-versus", "machine": machine, "threads": 2, "pinned": [0, 1],
        "software": {"onnxruntime": "1.32.0"}, "models": {"camvid-nano": model},
    }  # fmt: skip


def test_rows_have_ratios_with_their_intervals() -> None:
    model = report()["models"]["camvid-nano"]
    cells = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows(model)}
    ours = cells["edge-mdeq, 2 fp32, cold"]
    assert ours["research / it"] == "20.0 (20.0 to 20.0)"  # what slows a round slows both
    assert ours["it / ResNet-50"] == "0.50 (0.50 to 0.50)"
    assert (ours["ms"], ours["MB"], ours["metric"]) == ("10.0", "40", "0.575")
    assert "OpenVINO on our graph, 2 fp32" not in cells


def test_the_goal_is_judged_on_the_cheapest_rung_that_is_as_good_as_converged() -> None:
    model = report()["models"]["camvid-nano"]
    assert converged(model)["name"] == "edge-mdeq, 2 fp32, cold"  # type: ignore[index]
    (claim,) = claims("camvid-nano", model)
    assert claim.met
    assert claim.measured.value == pytest.approx(20)
    model["accuracy"]["cold"]["2 fp32"] = 0.56  # two points less
    (claim,) = claims("camvid-nano", model)
    assert not claim.met
    assert claim.measured.value == pytest.approx(5)


def test_a_roofline_compares_rates_not_times() -> None:
    found = {
        "model": "m", "gflop": 2.0, "product_gflop": 16.0,
        "milliseconds": {
            "torch.mm": [80.0, 160.0, 80.0], "cell, fp32": [20.0, 40.0, 20.0],
            "cell, int8": [10.0, 20.0, 10.0],
        },
    }  # fmt: skip
    rate, faster = roofline_claims(found)
    assert rate.measured.value == pytest.approx(0.5)  # 16 in 80 ms beside 2 in 20 ms
    assert not rate.met
    assert faster.measured.value == pytest.approx(2)
    assert faster.met


def test_the_model_card_knows_single_precision() -> None:
    metrics = {"miou_cold_1": 0.17, "miou_warm_2": 0.57, "other": 1.0}
    assert from_card(metrics, "miou") == {
        "metric": "miou", "source": "the model card", "cold": {"1 fp32": 0.17},
        "warm": {"2 fp32": 0.57},
    }  # fmt: skip
    assert from_card({}, "miou") is None


def test_a_page_is_written_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, page = tmp_path / "versus.json", tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    prose = f"# Mine\n\nbefore\n{performance_page.START}\nstale\n{performance_page.END}\nafter\n"
    page.write_text(prose)
    figures.write_text(json.dumps(report()))
    monkeypatch.setattr("sys.argv", ["page", str(figures), "--page", str(page)])
    performance_page.main()
    once = page.read_text()
    assert once.startswith("# Mine\n\nbefore\n")
    assert once.endswith("\nafter\n")
    assert "stale" not in once
    assert "2 cores of Linux x86_64 with AVX2" in once
    assert "A CPU" not in once  # a machine is its cores and instructions
    assert "| edge-mdeq, 2 fp32, cold | 10.0 | 0.5 | 2.0 | 20.0 (20.0 to 20.0) | 0.50 " in once
    assert "- OpenVINO on our graph, 2 fp32: not installed" in once
    assert "mean IoU from the model card" in once
    assert (page.parent / performance_page.PLOT).read_text().rstrip().endswith("</svg>")
    performance_page.main()
    assert page.read_text() == once


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("{}", "has no 'models'"),
        ("[1]", "has no 'models'"),
    ],
)
def test_what_is_no_comparison_is_refused(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["page", str(path)])
    with pytest.raises(SystemExit, match=said):
        performance_page.main()


def test_a_page_without_markers_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, page = tmp_path / "versus.json", tmp_path / "performance.md"
    page.write_text("prose\n")
    figures.write_text(json.dumps(report()))
    monkeypatch.setattr("sys.argv", ["page", str(figures), "--page", str(page)])
    with pytest.raises(SystemExit, match="once and in this order"):
        performance_page.main()
    assert page.read_text() == "prose\n"
