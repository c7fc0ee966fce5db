"""What viewers of the live page cost: processor time of each, and the pipeline's frames.

    python benchmarks/live_page.py [--viewers 0 1 6 21] [--seconds 10] [--bundle BUNDLE]

First a camera of 1280 x 720 at 15 fps and a session that costs nothing: the process's time goes to
the page alone. Then the model of a bundle, in turns with and without twenty viewers: on the frames
of such a camera, and on frames that come as fast as they are answered, so that the page encodes
while the next one is solved. The viewers are in a process of their own, and only read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from viewers import READ

from mdeq_export.images import scene
from mdeq_runtime import Frame, Model, Result, Session
from mdeq_runtime.pipeline import run
from mdeq_runtime.sources.base import Source
from mdeq_runtime.web import LivePage

SIZE, FPS = (720, 1280), 15.0
Times = tuple[float, float]  # by the clock, and of the pipeline's thread; milliseconds
LABELS = ("sky", "ground", "object")


def now() -> Times:
    """Milliseconds."""
    return 1e3 * time.perf_counter(), 1e3 * time.thread_time()


class Pan(Source):
    """A generated scene that moves past: at ``fps``, or as fast as it is read."""

    description = "generated scene"

    def __init__(self, fps: float | None, count: int | None = None) -> None:
        self.live, self.fps, self.size = fps is not None, fps, SIZE
        wide = scene(4, SIZE[0], 2 * SIZE[1])[..., ::-1]
        self.wide = cv2.GaussianBlur(np.ascontiguousarray(wide), (3, 3), 0)
        self.index, self.count, self.closed = 0, count, threading.Event()
        self.due = time.monotonic()

    def read(self) -> Frame | None:
        if self.fps is not None:
            self.due += 1 / self.fps
            self.closed.wait(max(0.0, self.due - time.monotonic()))
        if self.closed.is_set() or self.index == self.count:
            return None
        self.index += 1
        at = abs((6 * self.index) % (2 * SIZE[1]) - SIZE[1])
        return Frame(
            np.ascontiguousarray(self.wide[:, at : at + SIZE[1]]), self.index - 1, self.due
        )

    def close(self) -> None:
        self.closed.set()


def no_model() -> Any:
    """A session that gives the same mask for every frame."""
    mask = np.zeros(SIZE, np.uint8)
    mask[300:] = 1
    mask[400:600, 200:700] = 2

    def answer(frame: Frame) -> Result:
        return Result(mask, None, 2, 0.03, True, True, "", {"solve": 0.0}, frame.index)

    return answer


@contextmanager
def viewers(page: LivePage, count: int) -> Iterator[None]:
    """So many readers of the stream, in a process of their own."""
    if not count:
        yield
        return
    command = [sys.executable, "-c", READ, str(page.port), str(count)]
    # they stand for other machines: they must not take this one from the pipeline
    with subprocess.Popen(["nice", "-n", "19", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def cost(counts: list[int], seconds: float) -> None:
    """Share of one core by the number of viewers."""
    used = {}
    with LivePage("http://127.0.0.1:0?viewers=100", LABELS, ()) as page:
        stop = threading.Event()
        arguments = (no_model(), Pan(FPS), [page])
        thread = threading.Thread(target=run, args=arguments, kwargs={"stop": stop})
        thread.start()
        try:
            for count in counts:
                with viewers(page, count):
                    time.sleep(1)
                    assert page.publisher.frames.followers == count
                    cpu, wall = time.process_time(), time.perf_counter()
                    before = page.publisher.frames.number
                    time.sleep(seconds)
                    wall = time.perf_counter() - wall
                    used[count] = (time.process_time() - cpu) / wall
                    made = page.publisher.frames.number - before
                    print(
                        f"{count:3} viewers: {100 * used[count]:5.1f}% of a core, "
                        f"{made / wall:.1f} frames encoded per second"
                    )
                time.sleep(0.5)
            part = page.publisher.frames.items or [b""]
            print(f"a frame is {len(part[-1]) / 1e3:.0f} kB of JPEG")
        finally:
            stop.set()
            thread.join()
    most = max(counts)
    if 0 in used and 1 in used and most > 1:
        first, further = used[1] - used[0], (used[most] - used[1]) / (most - 1)
        print(f"the first viewer costs {100 * first:.1f}% of a core, each further {further:.2%}")


def slowed(bundle: Path, fps: float | None, count: int, frames: int, turns: int) -> None:
    """Times of the pipeline's frames with and without viewers, in turns.

    ``fps`` is the camera's; None: a frame is there whenever one is asked for.

    A second group without viewers shows what the machine itself varies by. Where other programs
    keep its cores busy, the clock says more of those than of the viewers; the processor time of the
    pipeline's thread says what the viewers take from it.
    """
    groups: dict[str, tuple[int, list[Times]]] = {
        "nobody": (0, []),
        "nobody, again": (0, []),
        f"{count} viewers": (count, []),
    }
    with Model(bundle, threads=1) as model, model.session() as session:
        for _ in range(turns):
            for watching, times in groups.values():
                times += timed(session, model.labels, fps, watching, frames)
    base = np.percentile(groups["nobody"][1], (50, 90, 99), axis=0)
    pace = "as fast as they are answered" if fps is None else f"at {fps:g} fps"
    print(f"frames {pace}: milliseconds of one, and their ratio to the first group's")
    for column, kind in enumerate(("clock", "processor")):
        for name, (_, times) in groups.items():
            found = np.percentile(times, (50, 90, 99), axis=0)
            said = ", ".join(
                f"p{p} {ms[column]:.1f} ({ms[column] / other[column]:.3f})"
                for p, ms, other in zip((50, 90, 99), found, base, strict=True)
            )
            print(f"{kind:>9}, {name:>13}, {len(times)} frames: {said}")


def timed(
    session: Session, labels: tuple[str, ...], fps: float | None, watching: int, count: int
) -> list[Times]:
    """What each of so many frames took, the sink included, while so many watch."""
    started: list[Times] = []
    ended: list[Times] = []

    def answer(frame: Frame) -> Result:
        started.append(now())
        return session(frame)

    def done(result: Result) -> None:
        ended.append(now())

    with LivePage("http://127.0.0.1:0?viewers=100", labels, ()) as page, viewers(page, watching):
        run(answer, Pan(fps, count), [page], on_result=done)
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(started, ended, strict=True)][3:]


def main() -> None:
    """Both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 1, 6, 21])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bundle", type=Path, default=Path("samples/bundles/camvid-nano.mdeq"))
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--turns", type=int, default=10)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    cost(args.viewers, args.seconds)
    for fps in (FPS, None):
        slowed(args.bundle, fps, 20, args.frames, args.turns)


if __name__ == "__main__":
    main()
