"""Finds the colours of ``mdeq_runtime.palette`` and prints them.

    python runtime/make_palette.py 24

Begins with the colours of Okabe and Ito (2008), and adds whichever colour is farthest from all
before it in the eyes that it is farthest in least: usual ones, and those without one of the three
kinds of cones, by Machado, Oliveira and Fernandes (2009). Farness is the distance in CIELAB.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
from numpy.typing import NDArray

OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
# of linear RGB; severity 1
EYES = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
LIGHTNESS = (30.0, 93.0)  # of CIELAB: darker or lighter ones get lost in a picture


def seen(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB (eyes, n, 3) of RGB colours (n, 3), as each kind of eyes sees them."""
    values = colours / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    through = np.stack([np.clip(linear @ matrix.T, 0, 1) for matrix in EYES.values()])
    ratio = through @ TO_XYZ.T / WHITE
    bent = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest(colours: NDArray[np.uint8]) -> float:
    """The least distance of any two colours (n, 3) in any eyes."""
    lab = seen(colours)
    far = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1)
    far[:, np.arange(len(colours)), np.arange(len(colours))] = np.inf
    return float(far.min())


def main() -> None:
    """Print ``n`` colours, each with its least distance to those before it."""
    chosen = [tuple(bytes.fromhex(text)) for text in OKABE_ITO]
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    candidates = np.array(list(product(steps, repeat=3)), np.uint8)
    light = seen(candidates)[0, :, 0]
    candidates = candidates[(light > LIGHTNESS[0]) & (light < LIGHTNESS[1])]
    lab = seen(candidates)
    least = np.full(len(candidates), np.inf)
    for count in range(int(sys.argv[1])):
        if count == len(chosen):
            chosen.append(tuple(candidates[least.argmax()].tolist()))
        one = seen(np.array([chosen[count]], np.uint8))
        least = np.minimum(least, np.linalg.norm(lab - one, axis=-1).min(axis=0))
        print(chosen[count], f"{nearest(np.array(chosen[: count + 1], np.uint8)):.1f}")


if __name__ == "__main__":
    main()
