"""A street that is drawn, for pictures that must show nobody's footage."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source

SIZE = (540, 720)
HORIZON = 0.42  # of the height
FPS = 15.0
SPEED = 6.0  # metres per second
FAR, AROUND = 80.0, 240  # metres that are seen, and after which the houses come again

Point = tuple[float, float, float]  # metres to the right, above the road, ahead


class Street(Source):
    """A drive down a street without end, 15 frames per second."""

    live, fps, size, description = True, FPS, SIZE, "a street that is drawn"

    def __init__(self) -> None:
        self.index, self.closed = 0, threading.Event()
        rng = np.random.default_rng(3)
        self.houses = [  # side, start, length, height, colour
            (side, start, 9 + 3 * rng.random(), 5 + 5 * rng.random(), rng.integers(60, 150, 3))
            for side in (-1, 1)
            for start in range(0, AROUND, 14)
        ]
        self.grain = rng.normal(0, 5, (*SIZE, 3))

    def read(self) -> Frame | None:
        if self.closed.wait(1 / FPS):
            return None
        self.index += 1
        image = self.draw(SPEED * self.index / FPS)
        shift = np.roll(self.grain, self.index * 37, axis=(0, 1))
        image = np.asarray(np.clip(image + shift, 0, 255), np.uint8)
        now = time.monotonic()
        return Frame(image, self.index - 1, now, now)

    def close(self) -> None:
        self.closed.set()

    def draw(self, at: float) -> NDArray[np.uint8]:
        """The street ``at`` metres from its beginning."""
        pen = Pen()
        pen.fill((92, 90, 90), (-4, 0, 0.6), (-4, 0, FAR), (4, 0, FAR), (4, 0, 0.6))
        for kerb in (-4, 4):
            wall = 1.8 * kerb
            pen.fill(
                (165, 168, 172), (kerb, 0, 0.6), (kerb, 0, FAR), (wall, 0, FAR), (wall, 0, 0.6)
            )
        for dash in range(6, 90, 6):
            z = dash - at % 6
            pen.fill((225, 228, 230), *strip(0.1, z, z + 2))
        for side, start, length, height, shade in sorted(
            self.houses, key=lambda house: -((house[1] - at) % AROUND)
        ):
            z = (start - at) % AROUND
            if z < FAR:
                draw_house(pen, side, z, length, height, shade)
                draw_tree(pen, 6.2 * side, z + length + 1)
        draw_car(pen, -2.1, (60 - 2.2 * at) % 60 + 3, (150, 110, 60))
        draw_car(pen, 1.9, 13 + 4 * np.sin(at / 11), (60, 50, 160))
        return pen.image


class Pen:
    """Fills polygons given in metres, nearer ones over farther ones as they come."""

    def __init__(self) -> None:
        self.top = round(HORIZON * SIZE[0])
        self.image = np.empty((*SIZE, 3), np.uint8)
        self.image[: self.top] = np.linspace((235, 215, 190), (245, 240, 235), self.top)[:, None]
        self.image[self.top :] = (120, 122, 124)

    def pixel(self, point: Point) -> tuple[int, int]:
        x, y, z = point
        scale = 0.8 * SIZE[1] / max(z, 0.6)
        return round(SIZE[1] / 2 + x * scale), round(self.top + (1.5 - y) * scale)

    def fill(self, colour: Sequence[float], *corners: Point) -> None:
        shape = np.array([self.pixel(corner) for corner in corners])
        cv2.fillPoly(self.image, [shape], [int(part) for part in colour], cv2.LINE_AA)


def strip(half: float, near: float, far: float) -> tuple[Point, ...]:
    """A strip along the middle of the road."""
    return (-half, 0, near), (-half, 0, far), (half, 0, far), (half, 0, near)


def draw_house(
    pen: Pen, side: int, z: float, length: float, height: float, shade: NDArray[np.int64]
) -> None:
    x, back, near, far = 7.4 * side, 13.4 * side, max(z, 0.8), z + length
    pen.fill(shade, (x, 0, near), (x, height, near), (x, height, far), (x, 0, far))
    front = (x, 0, near), (x, height, near), (back, height, near), (back, 0, near)
    pen.fill(0.8 * shade, *front)
    for y in np.arange(1.2, height - 1.5, 2.6):
        for a in np.arange(z + 1, z + length - 1.5, 2.4):
            if a > 1:
                b = a + 1.2
                pen.fill((70, 60, 50), (x, y, a), (x, y + 1.5, a), (x, y + 1.5, b), (x, y, b))


def draw_tree(pen: Pen, x: float, z: float) -> None:
    if 2 < z < FAR:
        foot, top, crown = (pen.pixel((x, y, z)) for y in (0, 3, 4))
        cv2.line(pen.image, foot, top, (50, 65, 85), max(1, round(150 / z)))
        cv2.circle(pen.image, crown, round(950 / z), (55, 105, 70), -1, cv2.LINE_AA)


def draw_car(pen: Pen, x: float, z: float, colour: Sequence[float]) -> None:
    for low, high, bottom, top, paint in (
        (0.0, 0.4, 0.9, 0.9, (40, 40, 40)),
        (0.3, 0.9, 0.9, 0.9, colour),
        (0.9, 1.45, 0.8, 0.6, (90, 80, 70)),
    ):
        shape = (x - bottom, low, z), (x - top, high, z), (x + top, high, z), (x + bottom, low, z)
        pen.fill(paint, *shape)
