"""A service's two hours, accelerated: camera losses, reloads and viewers, and what it holds.

    python benchmarks/long_run.py [--bundle NAME.mdeq] [--frames 108000] [--lose-every 2700]
        [--reload-every 5400] [--every 900] [--viewers 3] [--out DIR]
    python benchmarks/long_run.py --rtsp --frames 9000 ...      # at the pace of a real server

A camera whose every connection ends after so many pictures (it ends, fails, or gives something that
is no picture, and its first attempt to come back fails) is read by the same code as real ones, as
fast as frames are answered: a real RTSP server cannot be hurried, and is what ``--rtsp`` reads
instead, killed and started again as often. Three viewers, in a process of their own, watch the live
page; the bundle, a link that leads to one of two copies, is reloaded. Frames, losses and reloads
are counted by frames, of which 15 are a second: 108,000 are two hours, with 40 losses and 29
reloads.

Memory, descriptors and threads are sampled every ``--every`` frames, reloads are 100 frames behind:
each gives back what the heap then takes again. The first minute's worth (900) has a loss and ten
reloads: each lays weights and values elsewhere in ONNX Runtime's arena, until all pages of it have
been touched once. Exit code 1 if resident memory rose by more than
1 MB above what it was then, if descriptors or threads did not stay the same, if a loss was not
recovered from or a reload failed. ``--out`` gets ``long_run.json`` and ``long_run.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from residence import ALLOWED, MINUTE, RATE, Sample, rise, sample, settled
from viewers import READ

from edge_mdeq.errors import SourceError
from mdeq_runtime import FixedIterations, Model, Result, SessionSettings
from mdeq_runtime.memory import settled_objects
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.service.reload import ReloadableSession
from mdeq_runtime.service.reloader import Reloader
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.metrics import MetricsSink
from mdeq_runtime.slot import SlotPolicy
from mdeq_runtime.sources import Source, open_source
from mdeq_runtime.sources.backoff import Backoff
from mdeq_runtime.sources.live import Live, Patience
from mdeq_runtime.web import LivePage, publisher

SAMPLE = Path(__file__).parents[1] / "samples" / "bundles" / "camvid-nano.mdeq"
SIZE = (192, 256)
EARLY = 80  # frames between reloads in the first minute
TOLD_S = 0.05  # between two figures of the page, which goes by the clock, where frames are hurried


class Camera:
    """Opens connections that end after so many pictures, each in another way.

    Args:
        first, every: pictures of the first connection, and of each one after it.
    """

    def __init__(self, first: int, every: int) -> None:
        self.left, self.every = first, every
        self.attempts = self.losses = 0
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (6, 16, 3), np.uint8)
        wide = cv2.resize(small, (2 * SIZE[1], SIZE[0]), interpolation=cv2.INTER_CUBIC)
        shifts = [*range(0, SIZE[1], 4), *range(SIZE[1], 0, -4)]
        self.pictures = [np.ascontiguousarray(wide[:, s : s + SIZE[1]]) for s in shifts]
        self.fps: float | None = float(RATE)
        self.size: tuple[int, int] | None = SIZE
        self.at = 0

    def __call__(self, cancelled: threading.Event) -> Camera:
        self.attempts += 1
        if self.losses and self.attempts % 2 == 0:
            raise SourceError("the camera does not answer yet")
        return self

    def read(self) -> np.ndarray | None:
        if self.left == 0:
            self.left, self.losses = self.every, self.losses + 1
            if self.losses % 3 == 0:
                raise SourceError("the camera's cable is out")
            return None if self.losses % 3 == 1 else np.zeros((0, 0, 3), np.uint8)
        self.left -= 1
        self.at = (self.at + 1) % len(self.pictures)
        return self.pictures[self.at].copy()

    def release(self) -> None:
        pass


@contextmanager
def scripted(lose_every: int) -> Iterator[tuple[Source, Callable[[], int]]]:
    """The camera above as a source, and how often it was lost."""
    camera = Camera(MINUTE // 3, lose_every)
    patience = Patience(backoff=Backoff(first_s=0.02, cap_s=0.05))
    source = Live(camera, "scripted camera", patience=patience)
    yield source, lambda: camera.losses


@contextmanager
def served(lose_every: int) -> Iterator[tuple[Source, Callable[[], int]]]:
    """A real server, which is killed for two seconds after so many frames' time."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
    from rtsp import serving

    over, losses = threading.Event(), 0
    with serving("--fps", str(RATE)) as server:

        def spoil() -> None:
            nonlocal losses
            pause = MINUTE / 3 / RATE
            while not over.wait(pause):
                server.kill()
                losses += 1
                over.wait(2.0)
                server.start()
                pause = lose_every / RATE

        source = open_source(server.uri)
        thread = threading.Thread(target=spoil)
        thread.start()
        try:
            yield source, lambda: losses
        finally:
            over.set()
            thread.join()


@contextmanager
def viewing(port: int, count: int) -> Iterator[None]:
    """So many readers of the live page, in a process of their own."""
    command = [sys.executable, "-c", READ, str(port), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        try:
            yield
        finally:
            process.kill()


@dataclass(frozen=True)
class Outcome:
    """What a long run amounts to.

    Attributes:
        frames, fps: how many were answered, and per second.
        samples: what the process held along the way.
        rise: bytes by which resident memory was at most above that after the first minute.
        descriptors, threads: the least and the most of them after the first minute.
        losses, recoveries: of the camera.
        reloads, failed: of the bundle.
        viewers: the fewest that were there at a sample.
        cold: frames from a cold start, by the kind of reason.
    """

    frames: int
    fps: float
    samples: list[Sample]
    rise: int
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    losses: int
    recoveries: int
    reloads: int
    failed: int
    viewers: int
    cold: dict[str, int]

    @property
    def good(self) -> bool:
        """Whether it is as the head of this file says."""
        constant = all(low == high for low, high in (self.descriptors, self.threads))
        recovered = self.losses - self.recoveries <= 1  # it may end in the midst of one
        return self.rise <= ALLOWED and constant and recovered and not self.failed


def long_run(args: argparse.Namespace, folder: Path) -> Outcome:
    """Answer ``args.frames`` frames; what is logged goes into ``folder``."""
    for name in ("one", "two"):
        shutil.copytree(args.bundle, folder / f"{name}.mdeq")
    link = folder / "current"
    link.symlink_to("one.mdeq")
    samples: list[Sample] = []
    viewers: list[int] = []
    count = asked = 0
    if not args.rtsp:  # its two minutes of figures, kept for whoever opens it, pass sooner as well
        publisher.EVERY_S = TOLD_S
    opening = served if args.rtsp else scripted
    with ExitStack() as stack:
        model = Model(link, SessionSettings(FixedIterations()), args.threads)
        metrics = Metrics(model.backend)
        session = stack.enter_context(ReloadableSession(link, model))
        reloader = Reloader(session)
        page = LivePage("http://127.0.0.1:0", model.labels, model.manifest.palette)
        stack.enter_context(viewing(page.port, args.viewers))
        source, losses = stack.enter_context(opening(args.lose_every))
        sinks = [
            open_sink(str(folder / "results.jsonl"), fps=None, labels=model.labels, palette=()),
            MetricsSink(folder / "metrics.jsonl", metrics, 10.0, clock=lambda: count / RATE),
            page,
        ]

        def watch(result: Result) -> None:
            nonlocal count, asked
            count += 1
            early = count <= 10 * EARLY and count % EARLY == 0
            if early or (count > MINUTE and count % args.reload_every == 100):
                finish(reloader, asked)  # else two would be one
                following = folder / "next"
                following.symlink_to("two.mdeq" if asked % 2 == 0 else "one.mdeq")
                following.replace(link)
                asked += 1
                reloader.ask()
            if count % args.every == 0 or count in (MINUTE, args.frames):
                finish(reloader, asked)
                samples.append(sample(count))
                viewers.append(page.publisher.frames.followers)

        stack.enter_context(settled_objects())
        summary = run(
            session, source, sinks, max_frames=args.frames, on_result=watch, metrics=metrics,
            policy=SlotPolicy.DROP_OLDEST if args.rtsp else SlotPolicy.WAIT,
        )  # fmt: skip
        after = settled(samples) or samples
        descriptors = [one.descriptors for one in after]
        threads = [one.threads for one in after]
        return Outcome(
            count, summary.fps, samples, rise(samples), (min(descriptors), max(descriptors)),
            (min(threads), max(threads)), losses(), source.status.reconnects, reloader.done,
            reloader.failed, min(viewers), dict(summary.cold),
        )  # fmt: skip


def finish(reloader: Reloader, asked: int) -> None:
    """Wait for all reloads that were asked for."""
    while reloader.done + reloader.failed < asked:
        time.sleep(0.01)


def draw(outcome: Outcome, path: Path) -> None:
    """Memory, descriptors and threads by minutes of the frames' time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    minutes = [one.frame / MINUTE for one in outcome.samples]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 4.5), sharex=True)
    for name in ("resident", "private"):
        above.plot(minutes, [getattr(one, name) / 1e6 for one in outcome.samples], label=name)
    for name in ("descriptors", "threads"):
        below.plot(minutes, [getattr(one, name) for one in outcome.samples], label=name)
    above.set(ylabel="MB", title=f"{outcome.losses} losses, {outcome.reloads} reloads")
    below.set(xlabel=f"minutes, of {MINUTE} frames", ylabel="count")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    """Run, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SAMPLE)
    parser.add_argument("--frames", type=int, default=108_000)
    parser.add_argument("--lose-every", type=int, default=2700)
    parser.add_argument("--reload-every", type=int, default=5400)
    parser.add_argument("--every", type=int, default=MINUTE)
    parser.add_argument("--viewers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rtsp", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with tempfile.TemporaryDirectory() as folder:
        outcome = long_run(args, Path(folder))
    said = json.dumps({"good": outcome.good, **asdict(outcome)})
    print(said)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "long_run.json").write_text(said + "\n")
        draw(outcome, args.out / "long_run.svg")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
