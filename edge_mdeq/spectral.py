"""The spectral radius of f's Jacobian: whether, and how fast, the plain iteration converges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.gradients import divided, eager, length, tracked, vector_jacobian

__all__ = ["SpectralRadius", "spectral_radius"]

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class SpectralRadius:
    """What a power iteration found, per sample.

    Attributes:
        value: the estimate, (B,), in at least fp32; NaN where J has NaN or infinity, or ||v J|| is
            out of range.
        change: by how much it differs from the same estimate half way, (B,). An estimate whose
            distance from 1 is not well above this decides nothing.
        growth: ||v J|| / ||v|| of each iteration, (iterations, B).
    """

    value: Tensor
    change: Tensor
    growth: Tensor


def spectral_radius(
    f: Callable[[State], State], z: State, iterations: int = 150, seed: int = 0
) -> SpectralRadius:
    """The largest |eigenvalue| of J = df/dz at ``z``, by power iteration (arXiv:2106.14342).

    It multiplies with the transposed Jacobian, which has the same eigenvalues. Samples must not
    depend on each other, as in the cell, where all norms are per sample. Parameters may be frozen
    and gradients off; no graph outlives the call. The random numbers are its own.

    The estimate is the geometric mean of the growth over the last third of the iterations. With a
    real dominant eigenvalue every single growth tends to its absolute value. With a complex pair
    (or two of opposite signs) the vector turns for ever and its growth oscillates around the pair's
    absolute value; over n iterations the mean of that is off by a factor of at most c^(1/n), where
    c is the ratio of the longest to the shortest length that the vector has on its way round.

    Args:
        f: the map, with u bound in.
        z: where to linearise, one (B, C_i, H_i, W_i) per scale: the equilibrium, usually.
        iterations: products with J; the spec's evaluations take 150.
        seed: of the start vector, which is the same on every device.

    Raises:
        ConfigError: fewer than 3 iterations, or called in inference mode, where torch has no
            gradients (``torch.no_grad`` is fine).
    """
    if iterations < 3:
        raise ConfigError(f"spectral_radius needs at least 3 iterations, not {iterations}")
    if torch.is_inference_mode_enabled():
        raise ConfigError("spectral_radius cannot work in inference mode; use torch.no_grad")
    with torch.enable_grad(), eager():
        leaves, fz = tracked(f, z)
    generator = torch.Generator().manual_seed(seed)
    v = tuple(torch.randn(x.shape, generator=generator).to(x.device) for x in leaves)
    growth = []
    for _ in range(iterations):
        v = vector_jacobian(fz, leaves, unit(v))
        growth.append(length(v))
    rates = torch.stack(growth)
    third = iterations // 3
    value = geometric_mean(rates[-third:])
    before = geometric_mean(rates[-2 * third : -third])
    return SpectralRadius(value, (value - before).abs(), rates)


def unit(v: State) -> State:
    """``v`` of length one per sample, in at least fp32; zero stays zero, infinity becomes NaN."""
    v = tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in v)
    norm = length(v)
    norm = torch.where(norm.isfinite(), norm, torch.full_like(norm, torch.nan))
    return divided(v, torch.where(norm == 0, torch.ones_like(norm), norm))


def geometric_mean(rates: Tensor) -> Tensor:
    """Over the first dimension; zero if any is zero."""
    return rates.log().mean(dim=0).exp()
