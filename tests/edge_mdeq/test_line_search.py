"""The Armijo line search against polynomials fitted by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_mdeq.solvers.line_search import SHORTEST, Trial, choose_trial, first_trial, judge


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_trial_is_accepted_by_the_sufficient_decrease() -> None:
    trial = Trial(column(1, 1, 0.5, 0.5), *(column(x, x, x, x) for x in (4, 1, 8)))
    enough = 4 * (1 - 1e-4), 4 * (1 - 0.5e-4)
    accepted, _ = judge(trial, column(enough[0] - 1e-9, enough[0] + 1e-9, enough[1] - 1e-9, 4))
    assert accepted.tolist() == [True, False, True, False]


@pytest.mark.parametrize("phi", [2.5, 4.0, 30.0])
def test_the_second_trial_minimises_the_quadratic(phi: float) -> None:
    """Through phi(0) = 2 with slope -2, and phi(1)."""
    _, following = judge(first_trial(column(2.0)), column(phi))
    curvature = phi - 2 + 2
    assert following.s.item() == pytest.approx(2 / (2 * curvature))
    assert (following.longer.item(), following.phi.item()) == (1.0, phi)


@pytest.mark.parametrize(("longer", "before", "s", "phi"), [
    (1.0, 9.0, 0.3, 2.2), (1.0, 40.0, 0.5, 3.0), (0.5, 3.0, 0.2, 2.1), (1.0, 2.5, 0.4, 2.05),
])  # fmt: skip
def test_later_trials_minimise_the_cubic(
    longer: float, before: float, s: float, phi: float
) -> None:
    start = 2.0
    lengths = np.array([longer, s])
    rest = np.array([before, phi]) - start * (1 - lengths)  # a s^3 + b s^2
    a, b = np.linalg.solve(np.stack([lengths**3, lengths**2], axis=1), rest)
    roots = np.roots([3 * a, 2 * b, -start])
    minima = [r.real for r in roots if abs(r.imag) < 1e-12 and 6 * a * r.real + 2 * b > 0]
    minimum = minima[0] if len(minima) == 1 else None
    expected = minimum if minimum is not None and s / 10 <= minimum <= s / 2 else s / 2
    trial = Trial(*(column(x) for x in (s, start, longer, before)))
    accepted, following = judge(trial, column(phi))
    assert not accepted.item()
    assert following.s.item() == pytest.approx(expected)


@pytest.mark.parametrize("phi", [float("nan"), float("inf"), 1e9])
def test_a_step_that_cannot_be_saved_is_taken_whole(phi: float) -> None:
    _, following = judge(first_trial(column(2.0)), column(phi))
    assert following.s.item() == 1.0
    accepted, _ = judge(following, column(1e9))
    assert accepted.item()


def test_trials_grow_shorter_until_the_shortest() -> None:
    """Where no length ever helps, after a few trials the full step is taken."""
    trial, lengths = first_trial(column(2.0)), []
    for _ in range(20):
        accepted, trial = judge(trial, column(2.0 + trial.s.item()))
        if accepted.item():
            break
        lengths.append(trial.s.item())
    assert lengths[-1] == 1.0
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
    assert all(SHORTEST <= length < 1 for length in lengths[:-1])


def test_samples_are_told_apart() -> None:
    a, b = first_trial(column(1.0, 2.0)), first_trial(column(3.0, 4.0))
    chosen = choose_trial(torch.tensor([True, False]), a, b)
    assert chosen.start.tolist() == [1.0, 4.0]
