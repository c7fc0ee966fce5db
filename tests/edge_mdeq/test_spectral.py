"""The spectral radius by power iteration against dense eigenvalues."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from contractions import SIZE, to_flat, to_state, zeros
from problems import Map, Problem, State, dense_jacobian, spectral_radii
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.spectral import spectral_radius


def similar(blocks: Tensor, seed: int = 0) -> Tensor:
    """A matrix with the eigenvalues of ``blocks``, no longer normal, nor aligned with any axis."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    basis = torch.eye(SIZE, dtype=torch.float64) + 0.2 * noise
    return basis @ blocks @ torch.linalg.inv(basis)


def with_eigenvalues(*values: complex) -> Tensor:
    """Real (11, 11): a 2x2 block for each complex value and its conjugate, 0.3 for all others."""
    parts = []
    for value in values:
        value = complex(value)
        a, b = value.real, value.imag
        parts.append(torch.tensor([[a, -b], [b, a]] if b else [[a]], dtype=torch.float64))
    rest = SIZE - sum(len(part) for part in parts)
    return torch.block_diag(*parts, 0.3 * torch.eye(rest, dtype=torch.float64))


def linear_per_sample(*matrices: Tensor) -> Map:
    """z -> A z with an A per sample."""
    A = torch.stack(matrices)
    return lambda z: to_state((A @ to_flat(z)[:, :, None])[:, :, 0])


@pytest.mark.parametrize(
    ("dominant", "rel"),
    [
        ([0.9], 1e-9),
        ([-0.9], 1e-9),
        ([1.7, 0.9], 1e-9),
        ([0.8, -0.8], 1e-2),
        ([0.9 * math.e ** (0.7j)], 1e-2),
        ([1.2j], 1e-2),
        ([0.9, 0.85 * math.e ** (2j), -0.87], 1e-2),
    ],
    ids=["real", "negative", "above 1", "opposite signs", "pair", "imaginary", "crowded"],
)
def test_it_is_the_largest_eigenvalue(dominant: list[complex], rel: float) -> None:
    """Of a matrix that is not normal, whose norm says less than its eigenvalues."""
    A = similar(with_eigenvalues(*dominant))
    exact = float(torch.linalg.eigvals(A).abs().max())
    assert exact == pytest.approx(abs(dominant[0]), rel=1e-9)
    assert float(torch.linalg.matrix_norm(A, 2)) > 1.2 * exact
    found = spectral_radius(linear_per_sample(A), zeros(1))
    assert float(found.value) == pytest.approx(exact, rel=rel)


def test_of_a_problem_at_its_equilibrium(problem: Problem) -> None:
    """Two images in a batch, each with a radius of its own."""
    z = problem.equilibrium()
    exact = spectral_radii(dense_jacobian(problem.bind(), z))
    found = spectral_radius(problem.bind(), z)
    torch.testing.assert_close(found.value, exact, rtol=2e-2, atol=0)
    assert float((exact[0] - exact[1]).abs()) > float((found.value - exact).abs().max())


def test_a_zero_jacobian_has_radius_zero() -> None:
    """Whether it is zero or only dies out, as a nilpotent one does."""
    nilpotent = torch.diag(torch.ones(SIZE - 1, dtype=torch.float64), 1)
    f = linear_per_sample(torch.zeros(SIZE, SIZE, dtype=torch.float64), nilpotent)
    found = spectral_radius(f, zeros(2))
    assert found.value.tolist() == [0.0, 0.0]
    assert found.change.tolist() == [0.0, 0.0]


def test_a_map_that_ignores_the_state_has_radius_zero() -> None:
    assert spectral_radius(lambda z: tuple(0 * x + 1 for x in z), zeros(2)).value.tolist() == [0, 0]


def test_f_need_not_depend_on_every_scale() -> None:
    """And nothing that comes out requires gradients, though zeros are made up for scale 1."""
    found = spectral_radius(lambda z: (z[0] / 2, 3 * z[1].detach() + z[0].mean()), zeros(1))
    assert float(found.value) == pytest.approx(0.5, rel=1e-9)
    assert not any(x.requires_grad for x in (found.value, found.change, found.growth))


def test_samples_do_not_influence_each_other() -> None:
    """Huge ones, whose squares are infinite, and those with NaN, infinity or a product of infinite
    elements or infinite length, which are never taken for small ones."""
    plain, huge = similar(with_eigenvalues(0.9)), similar(with_eigenvalues(1e200))
    broken = [plain.clone() for _ in range(4)]
    broken[0][3, 4], broken[1][3, 4], broken[2][:], broken[3][:] = math.nan, math.inf, 1e308, 3e307
    found = spectral_radius(linear_per_sample(plain, huge, *broken), zeros(6))
    alone = spectral_radius(linear_per_sample(plain), zeros(1))
    torch.testing.assert_close(found.value[0], alone.value[0], rtol=1e-9, atol=0)
    assert float(found.value[1]) == pytest.approx(1e200, rel=1e-9)
    assert found.value[2:].isnan().all()
    assert found.change[2:].isnan().all()


def test_growth_and_change_show_how_settled_it_is() -> None:
    """Growth tends to a real eigenvalue, and goes round for ever with a pair; the change between
    the last two thirds is larger the less has been iterated."""
    pair = similar(with_eigenvalues(0.9 * math.e**0.7j))
    found = spectral_radius(linear_per_sample(similar(with_eigenvalues(0.9)), pair), zeros(2), 90)
    assert found.growth.shape == (90, 2)
    last = found.growth[-20:]
    torch.testing.assert_close(last[:, 0], torch.full_like(last[:, 0], 0.9), rtol=1e-9, atol=0)
    assert float(last[:, 1].amax() / last[:, 1].amin()) > 1.1
    thirds = found.growth.log().view(3, 30, 2).mean(dim=1).exp()
    torch.testing.assert_close(found.value, thirds[2])
    torch.testing.assert_close(found.change, (thirds[2] - thirds[1]).abs())
    early = spectral_radius(linear_per_sample(pair, pair), zeros(2), 9)
    assert float(early.change[0]) > 3 * float(found.change[1])


# Randomness and modes


def test_a_seed_decides_the_start_and_nothing_else_does(contraction: Problem) -> None:
    """The global generator is neither used nor moved."""
    z, f = contraction.equilibrium(), contraction.bind()
    torch.manual_seed(0)
    first = spectral_radius(f, z, iterations=6)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again, other = spectral_radius(f, z, iterations=6), spectral_radius(f, z, 6, seed=1)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.growth, again.growth)
    assert not torch.equal(first.growth, other.growth)
    long = [spectral_radius(f, z, seed=seed).value for seed in (0, 1)]
    torch.testing.assert_close(long[0], long[1], rtol=2e-2, atol=0)


def test_it_works_without_gradients_and_with_frozen_parameters(mdeq: Problem) -> None:
    z = mdeq.equilibrium()
    expected = spectral_radius(mdeq.bind(), z, iterations=20).value
    for parameter in mdeq.parameters:
        parameter.requires_grad_(False)
    with torch.no_grad():
        found = spectral_radius(mdeq.bind(), z, iterations=20)
    assert torch.equal(found.value, expected)
    assert not any(x.requires_grad for x in (found.value, found.change, found.growth, *z))


def test_inference_mode_is_refused(contraction: Problem) -> None:
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"torch\.no_grad"):
        spectral_radius(contraction.bind(), contraction.zero)


@pytest.mark.parametrize("iterations", [-1, 0, 2])
def test_fewer_than_three_iterations_are_refused(contraction: Problem, iterations: int) -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        spectral_radius(contraction.bind(), contraction.zero, iterations)


def test_three_iterations_are_enough(contraction: Problem) -> None:
    found = spectral_radius(contraction.bind(), contraction.equilibrium(), iterations=3)
    torch.testing.assert_close(found.value, found.growth[2])
    torch.testing.assert_close(found.change, (found.growth[2] - found.growth[1]).abs())


def test_half_precision_is_measured_in_single() -> None:
    """The squared length of a vector of 70,000 would be infinite in fp16."""
    z = (torch.zeros(1, 1, 2, 35_000, dtype=torch.float16),)
    found = spectral_radius(lambda z: (0.5 * z[0],), z, iterations=6)
    assert found.value.dtype == torch.float32
    assert float(found.value) == pytest.approx(0.5, rel=1e-3)


def test_no_graph_outlives_the_call(mdeq: Problem) -> None:
    f, seen = mdeq.bind(), []

    def watched(z: State) -> State:
        fz = f(z)
        seen.extend(weakref.ref(x) for x in (*z, *fz))
        return fz

    z = mdeq.equilibrium()
    gc.collect()
    gc.disable()
    try:
        kept = spectral_radius(watched, z, iterations=3)
        assert len(seen) == 4
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()
    assert kept.value.shape == (2,)
