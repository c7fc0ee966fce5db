"""The solver that suits the weights: measured, chosen, refused or warned of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_exports import two_images

from edge_mdeq.bundle import SolverCurve, open_bundle
from edge_mdeq.errors import ConfigError, ConvergenceError
from edge_mdeq.solvers import Anderson, FixedPoint, solve
from edge_mdeq.weights import load_weights, save_weights
from mdeq_export import ExportSettings, export_bundle
from mdeq_export.convergence import (
    CANDIDATES,
    DIVERGED,
    Goal,
    cell_flops,
    choose,
    equilibria,
    largest_radius,
    measure,
    recorded,
    reference_curve,
)
from mdeq_export.images import scene
from mdeq_export.pieces import Inject

IMAGES = np.stack([scene(seed, 64, 96) for seed in range(2)])
Stretch = Callable[[float], Path]


def curve(
    name: str, cost: float, worst: list[float], drop: list[float] | None = None
) -> SolverCurve:
    return SolverCurve(
        name, {}, cost, tuple(worst), tuple(worst), tuple(drop or [0.0] * len(worst))
    )


# The choice


def test_enough_is_where_the_residual_stays_below_the_tolerance() -> None:
    falling = curve("a", 1, [1.0, 0.1, 0.02, 0.005, 0.001])
    assert Goal(0.01).met(falling) == 4
    assert Goal(0.1).met(falling) == 2
    assert Goal(1e-6).met(falling) is None
    bouncing = curve("a", 1, [1.0, 0.005, 0.5, 0.004, 0.003])
    assert Goal(0.01).met(bouncing) == 4
    assert Goal(0.01).met(curve("a", 1, [0.5, 0.001, float("nan")])) is None


def test_the_answers_can_be_asked_for_instead_or_as_well() -> None:
    found = curve("a", 1, [1.0, 0.1, 0.02, 0.005], [0.4, 0.05, 0.004, 0.0])
    assert Goal(None, 0.01).met(found) == 3
    assert Goal(0.5, 0.01).met(found) == 3
    assert Goal(0.01, 0.1).met(found) == 4


def test_the_cheapest_counts_evaluations_and_steps() -> None:
    plain = curve("fixed_point", 1.0, [1.0, 0.5, 0.2, 0.1, 0.05, 0.01])
    mixed = curve("anderson", 1.3, [1.0, 0.5, 0.05, 0.01, 0.001, 0.001])
    chosen = choose([plain, mixed], Goal(0.01), 0.9)  # 6 against 4 * 1.3
    assert (chosen.curve.solver, chosen.evaluations) == ("anderson", 4)
    assert [c.solver for c in chosen.curves] == ["anderson", "fixed_point"]
    chosen = choose([plain, mixed], Goal(0.1), 0.9)  # 4 against 3 * 1.3
    assert (chosen.curve.solver, chosen.evaluations) == ("anderson", 3)
    chosen = choose([plain, mixed], Goal(0.5), 0.9)
    assert (chosen.curve.solver, chosen.evaluations) == ("fixed_point", 2)


def test_a_tolerance_that_none_reaches_is_refused_with_what_comes_nearest() -> None:
    plain, mixed = curve("fixed_point", 1, [1, 0.5, 0.2]), curve("anderson", 1.3, [1, 0.5, 0.1])
    with pytest.raises(
        ConvergenceError, match=r"a residual of 0\.01 within 3 .* anderson .* 0\.1 "
    ):
        choose([plain, mixed], Goal(0.01), 0.97)


@pytest.mark.parametrize("tol", [0.0, -1.0, 1.0, float("nan"), float("inf")])
def test_a_senseless_tolerance_is_refused(tol: float) -> None:
    with pytest.raises(ConfigError, match=r"f_tol is .* must be in \(0, 1\)"):
        Goal(tol)


@pytest.mark.parametrize("drop", [-0.1, 1.0, 5.0, float("nan")])
def test_a_senseless_drop_is_refused(drop: float) -> None:
    with pytest.raises(ConfigError, match=r"max_metric_drop is .* a share in \[0, 1\)"):
        Goal(None, drop)
    assert Goal(None, 0.0).met(curve("a", 1, [1.0, 0.1], [0.4, 0.0])) == 2


def test_where_answers_are_asked_for_the_nearest_is_nearest_by_its_answers() -> None:
    plain = curve("fixed_point", 1, [1, 0.5, 0.2], [0.5, 0.2, 0.1])
    mixed = curve("anderson", 1.3, [1, 0.5, 0.1], [0.5, 0.3, 0.2])
    with pytest.raises(ConvergenceError, match=r"0\.00% of .* fixed_point .* 0\.2 and 10\.00% of"):
        choose([plain, mixed], Goal(None, 0.0), 0.97)


def test_what_is_recorded_can_be_read_back() -> None:
    """JSON has neither NaN nor infinity: a bundle that held them could not be opened."""
    values = np.array([0.123456, 1e30, np.inf, np.nan])
    assert recorded(values) == (0.1235, DIVERGED, DIVERGED, DIVERGED)
    grown = curve("fixed_point", 1, list(recorded(values)))
    assert Goal(0.5).met(grown) is None
    with pytest.raises(ConvergenceError, match="diverges under every solver"):
        choose([grown], Goal(0.5), 3.0)


# The measuring


def test_a_curve_is_the_trace_of_torchs_solve(segmenter_weights: Path) -> None:
    model, card = load_weights(segmenter_weights)
    frozen = model.freeze()
    goals = equilibria(frozen, card.input, IMAGES)
    found = measure(frozen, card.input, "anderson", {"m": 3}, IMAGES, goals, limit=6)
    traces, others = [], []
    for image in IMAGES:
        with torch.no_grad():
            u = Inject(model, card.input)(torch.from_numpy(image[None]))
            f, zero = model.bind(u), model.zero_state(u)
            traces.append(solve(f, zero, Anderson(3), 6).trace[:, 0].numpy())
            far = solve(f, zero, FixedPoint(), 60).value
            near = solve(f, zero, Anderson(3), 1).value
            a, b = (model.readout(z).argmax(dim=1).float() for z in (near, far))
            others.append(float((a != b).float().mean()))
    np.testing.assert_allclose(found.residual, np.mean(traces, axis=0), rtol=2e-2, atol=1e-6)
    np.testing.assert_allclose(found.worst, np.max(traces, axis=0), rtol=2e-2, atol=1e-6)
    assert found.disagreement[0] == pytest.approx(np.mean(others), abs=0.05)
    assert found.disagreement[0] > found.disagreement[-1]
    assert found.cost > 1


def test_the_reference_s_curve_is_what_torch_has_found_so_far(segmenter_weights: Path) -> None:
    """Solves of all evaluations, without the reference's tolerance, cut where each meets it."""
    model, card = load_weights(segmenter_weights)
    frozen = model.freeze()
    goals = equilibria(frozen, card.input, IMAGES)
    found = reference_curve(frozen, card.input, goals)
    rates = []
    for image, goal in zip(IMAGES, goals, strict=True):
        with torch.no_grad():
            u = Inject(model, card.input)(torch.from_numpy(image[None]))
            traced = solve(model.bind(u), model.zero_state(u), Anderson(5), len(found.residual))
        lowest, best = [], np.inf
        for residual in traced.trace[:, 0].tolist():
            best = min(best, residual) if best > 1e-4 else best
            lowest.append(best)
        assert goal.residual[0] == pytest.approx(lowest[-1], rel=0.1)
        rates.append(lowest)
    np.testing.assert_allclose(found.residual, np.mean(rates, axis=0), rtol=0.1)
    np.testing.assert_allclose(found.worst, np.max(rates, axis=0), rtol=0.1)
    assert 5 < len(found.residual) < 60
    assert max(rate[-1] for rate in rates) <= 1e-4
    assert (found.solver, found.settings, found.disagreement) == ("anderson", {"m": 5}, ())


def test_the_best_iterate_never_gets_worse(stretched: Stretch) -> None:
    model, card = load_weights(stretched(40.0))
    frozen = model.freeze()
    goals = equilibria(frozen, card.input, IMAGES)
    last, best = (
        measure(frozen, card.input, "fixed_point", {}, IMAGES, goals, best=b) for b in (False, True)
    )
    assert any(a < b for a, b in zip(last.worst, last.worst[1:], strict=False))
    assert list(best.residual) == sorted(best.residual, reverse=True)


def test_the_operations_of_the_cell_are_those_of_its_convolutions(segmenter_weights: Path) -> None:
    model, card = load_weights(segmenter_weights)
    frozen = model.freeze()
    shapes = card.model.state_shapes(1, card.input.height, card.input.width)
    area = [shape[2] * shape[3] for shape in shapes]
    total = 0
    for i, block in enumerate(frozen.cell.blocks):
        total += area[i] * sum(c.weight.numel() for c in (block.conv1, block.conv2))  # type: ignore
        total += area[i] * frozen.cell.post[i].conv.weight.numel()  # type: ignore
    for i, row in enumerate(frozen.cell.fuse):
        for j, link in enumerate(row):  # type: ignore[arg-type]
            convs = [m for m in link.modules() if isinstance(m, torch.nn.Conv2d)]
            for step, conv in enumerate(convs):
                total += conv.weight.numel() * (area[j] if j > i else area[j + step + 1])
    assert cell_flops(frozen, card.input) == 2 * total


# The export


@pytest.fixture(scope="module")
def stretched(segmenter_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Stretch:
    """Weights whose state weighs so many times more in f: they converge slowly, or not at all."""
    folder = tmp_path_factory.mktemp("stretched")

    def make(factor: float) -> Path:
        path = folder / f"{factor}.safetensors"
        if not path.exists():
            model, card = load_weights(segmenter_weights)
            with torch.no_grad():
                for post in model.cell.post:
                    post.norm.weight *= factor  # type: ignore[operator]
            save_weights(model, card, path)
        return path

    return make


@two_images()
def test_weights_that_contract_get_the_plain_iteration_and_as_much_as_they_need(
    segmenter_weights: Path, tmp_path: Path
) -> None:
    settings = ExportSettings((1, 2, 26), "auto")
    manifest = export_bundle(segmenter_weights, tmp_path / "a.mdeq", settings)
    assert open_bundle(tmp_path / "a.mdeq", verify=True).manifest == manifest
    report = manifest.verification
    assert manifest.solver.name == "fixed_point"
    assert {(c.solver, tuple(c.settings.items())) for c in report.curves} == {
        (name, tuple(options.items())) for name, options in CANDIDATES
    }
    chosen = report.curves[0]
    assert (chosen.solver, chosen.settings) == (manifest.solver.name, manifest.solver.settings)
    counts = [rung.evaluations for rung in manifest.profiles["ort-cpu"].rungs]
    needed = counts[-1]
    assert counts == [*(n for n in (1, 2) if n < needed), needed]
    assert chosen.worst[needed - 1] <= 1e-2 < chosen.worst[needed - 2]
    assert 0 < (report.spectral_radius or 0) < 1
    assert manifest.warnings == ()


@two_images()
def test_weights_that_expand_are_refused_and_exported_only_by_name(
    stretched: Stretch, tmp_path: Path
) -> None:
    weights, out = stretched(40.0), tmp_path / "a.mdeq"
    with pytest.raises(ConvergenceError, match=r"spectral radius \d.*edge-mdeq tune"):
        export_bundle(weights, out, ExportSettings((2,), "auto", images=None))
    assert not list(tmp_path.iterdir())
    manifest = export_bundle(weights, out, ExportSettings((2,), "fixed_point"))
    (warning,) = manifest.warnings
    assert "fixed_point does not converge on these weights" in warning
    assert (manifest.verification.spectral_radius or 0) > 1
    assert open_bundle(out).manifest.warnings == (warning,)


def test_the_radius_grows_with_the_weight_of_the_state(
    segmenter_weights: Path, stretched: Stretch
) -> None:
    radii = []
    for weights in (segmenter_weights, stretched(3.0)):
        model, card = load_weights(weights)
        frozen = model.freeze()
        goals = equilibria(frozen, card.input, IMAGES)
        radii.append(largest_radius(frozen, card.input, IMAGES, goals))
    assert 0 < radii[0] < radii[1]


def test_auto_takes_no_settings() -> None:
    with pytest.raises(ConfigError, match=r"auto.*finds its settings"):
        ExportSettings(solver="auto", solver_settings={"m": 3})
