"""The rungs of a bundle in turn, cold and warm, each through a session as a stream would be.

In every round each rung answers a few frames from a cold start and a few from its own last
equilibrium, in an order that is drawn anew; the first of the few counts nothing, because it meets
the caches as the rung before left them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edge_mdeq.bundle import Bundle, Rung, open_bundle
from edge_mdeq.bundle.signature import KeyFiles
from edge_mdeq.errors import ConfigError, SessionError
from mdeq_runtime.backends import Backend
from mdeq_runtime.backends.choose import open_backend
from mdeq_runtime.bench.machine import Cores, describe_machine, pinned
from mdeq_runtime.bench.memory import Memory, measure_memory
from mdeq_runtime.bench.pictures import Frames, load_frames, there_and_back
from mdeq_runtime.bench.statistics import check_ranks, summarise
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.session import Session, SessionSettings

__all__ = ["BenchReport", "BenchSettings", "Row", "Turns", "benchmark"]

Start = Literal["cold", "warm"]
STARTS: tuple[Start, ...] = ("cold", "warm")
TURN = 4  # frames, of which all but the first count
SLOW_MS = 400.0  # a frame that takes longer has its turns to itself
FEWEST = 3  # rounds, however long they take


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and for how long.

    Attributes:
        source: whose frames are answered; None: a moving pattern of the model's size.
        iterations: evaluations of f whose rungs are measured; empty: all.
        warmup: frames that each rung and start answers beforehand.
        duration: seconds of measuring, of all rungs together; at least three rounds are made.
        percentiles: of a frame's time, from 0 to 100.
        threads: per graph on the CPU, and cores that the process keeps to; 0: all there are.
        device: as ``mdeq_runtime.Model`` takes it.
        cache: a folder for graphs as this machine runs them.
        memory: whether each rung runs once more, in a process of its own, for its memory.
        require_signature: files of public keys, one of which must have signed the bundle.

    Raises:
        ConfigError: a number that makes no sense.
    """

    source: str | None = None
    iterations: Sequence[int] = ()
    warmup: int = 5
    duration: float = 10.0
    percentiles: Sequence[float] = (50, 90, 99)
    threads: int = 0
    device: str = "auto"
    cache: Path | None = None
    memory: bool = True
    require_signature: KeyFiles | None = None

    def __post_init__(self) -> None:
        if not 0 < self.duration < math.inf:
            raise ConfigError(
                f"the duration is {self.duration:g} s, must be positive and finite, such as 10"
            )
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}, need 0 frames or more")
        if self.threads < 0:
            raise ConfigError(f"threads is {self.threads}, need 0 (one per core) or more")
        object.__setattr__(self, "percentiles", check_ranks(self.percentiles))


@dataclass(frozen=True)
class Row:
    """What a rung takes from one start, on one frame.

    Attributes:
        start: "cold" (from zero) or "warm" (from the state of the frame before).
        evaluations: of f.
        steps: the precisions that they ran in, such as "7 int8 + 1 fp32".
        graph: of the rung; a session may make its evaluations in parts instead.
        frames: how many were measured.
        milliseconds: percentiles, by name.
        mean, iqr: milliseconds too; the latter is the width of the middle half.
        cpu_ms: milliseconds of all cores together, a stand-in for energy.
        fps: frames per second, one after the other.
        residual: the median of the relative residuals that it reached.
        memory: of a process that runs this rung alone, on whichever start; None if not measured.
    """

    start: Start
    evaluations: int
    steps: str
    graph: str
    frames: int
    milliseconds: dict[str, float]
    mean: float
    iqr: float
    cpu_ms: float
    fps: float
    residual: float
    memory: Memory | None = None


@dataclass(frozen=True)
class BenchReport:
    """The outcome of ``benchmark``.

    Attributes:
        bundle, profile, backend: what ran, and on what.
        machine: processor, cores, instructions.
        threads: per graph.
        pinned: the cores that the process kept to; none where that is not permitted.
        frames: what was answered, in words.
        rounds: how often each rung had its turn.
        seconds: of measuring time.
        rows: a row per rung and start, cold ones first.
    """

    bundle: str
    profile: str
    backend: str
    machine: dict[str, str | int | list[str]]
    threads: int
    pinned: tuple[int, ...]
    frames: str
    rounds: int
    seconds: float
    rows: tuple[Row, ...]


@dataclass
class Turns:
    """One rung from one start, and what was measured of it, frame by frame."""

    rung: Rung
    start: Start
    session: Session
    frames: Frames
    step: int = 0
    wall: list[float] = field(default_factory=list)  # milliseconds
    cpu: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    slow: bool = False

    def answer(self) -> tuple[float, float, float]:
        """One frame: milliseconds on the clock and of all cores, and its residual."""
        frame = self.frames[there_and_back(self.step, len(self.frames))]
        self.step += 1
        began, busy = time.perf_counter(), time.process_time()
        found = self.session(frame)
        spent, worked = time.perf_counter() - began, time.process_time() - busy
        return 1e3 * spent, 1e3 * worked, found.residual

    def warm_up(self, count: int) -> None:
        """``count`` frames, at least the first one, from which a warm start starts."""
        taken = [self.answer()[0] for _ in range(max(count, 1))]
        self.slow = taken[-1] > SLOW_MS

    def take(self) -> None:
        """One turn of a round."""
        if not self.slow:
            self.answer()
        for _ in range(1 if self.slow else TURN - 1):
            for kept, value in zip(
                (self.wall, self.cpu, self.residuals), self.answer(), strict=True
            ):
                kept.append(value)

    def row(self, ranks: Sequence[float], memory: Memory | None) -> Row:
        found = summarise(self.wall, ranks)
        return Row(
            start=self.start,
            evaluations=self.rung.evaluations,
            steps=" + ".join(f"{s.evaluations} {s.precision}" for s in self.rung.steps),
            graph=self.rung.graph,
            frames=found.count,
            milliseconds=found.percentiles,
            mean=found.mean,
            iqr=found.iqr,
            cpu_ms=float(np.mean(self.cpu)),
            fps=1e3 / found.mean,
            residual=float(np.median(self.residuals)),
            memory=memory,
        )


def benchmark(
    bundle: Path,
    settings: BenchSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchReport:
    """Measure the rungs of ``bundle`` on this machine.

    Args:
        bundle: ``NAME.mdeq``.
        settings: what to measure, and for how long.
        progress: called with (seconds, seconds in all) while frames are answered.

    Raises:
        BundleError, MissingExtraError, DeviceError: the bundle cannot be run here, or was not
            signed by a key that is required.
        SessionError: it has no rung of a count that was asked for, or a solve ended in NaN.
        SourceError: the source gives no frames.
    """
    settings = settings or BenchSettings()
    opened = open_bundle(Path(bundle), require_signature=settings.require_signature)
    frames, described = load_frames(settings.source, opened.manifest.input.size)
    with pinned(settings.threads) as cores:
        backend, profile = open_for(opened, settings, cores)
        with closing(backend):
            name = backend.name
            rungs = choose_rungs(opened, profile, settings.iterations)
            every = [
                Turns(rung, start, session_for(opened, profile, backend, rung, start), frames)
                for start in STARTS
                for rung in rungs
            ]
            for turns in every:
                turns.warm_up(settings.warmup)
            rounds, seconds = take_turns(every, settings.duration, progress)
        memory = {
            rung.graph: measure_memory(opened.path, profile, rung, settings, cores.threads)
            for rung in (rungs if settings.memory else ())
        }
    return BenchReport(
        bundle=opened.manifest.name,
        profile=profile,
        backend=name,
        machine=describe_machine(),
        threads=cores.threads,
        pinned=cores.pinned,
        frames=described,
        rounds=rounds,
        seconds=seconds,
        rows=tuple(t.row(settings.percentiles, memory.get(t.rung.graph)) for t in every),
    )


def open_for(bundle: Bundle, settings: BenchSettings, cores: Cores) -> tuple[Backend, str]:
    """The backend that runs all rungs that are asked for, and its profile's name."""
    counts = settings.iterations or {
        rung.evaluations for profile in bundle.manifest.profiles.values() for rung in profile.rungs
    }
    policies = [FixedIterations(count) for count in counts]
    return open_backend(bundle, settings.device, cores.threads, settings.cache, policies=policies)


def choose_rungs(bundle: Bundle, profile: str, iterations: Sequence[int]) -> tuple[Rung, ...]:
    """Those of so many evaluations, fewest first; all if none is named.

    Raises:
        SessionError: the bundle has none of a count.
    """
    rungs = sorted(bundle.profile(profile).rungs, key=lambda rung: rung.evaluations)
    known = {rung.evaluations for rung in rungs}
    if missing := sorted(set(iterations) - known):
        raise SessionError(
            f"{bundle.path} has no rung of {missing[0]} evaluations, only of "
            f"{', '.join(map(str, sorted(known)))}; choose among them, or add it: edge-mdeq unroll "
            f"{bundle.path} --iterations {missing[0]}"
        )
    return tuple(rung for rung in rungs if not iterations or rung.evaluations in iterations)


def session_for(
    bundle: Bundle, profile: str, backend: Backend, rung: Rung, start: Start
) -> Session:
    """A session that has this rung and parts of its precision, and never gives up a warm start."""
    whole = bundle.profile(profile)
    precision = rung.steps[-1].precision
    parts = tuple(part for part in whole.parts if part.precision == precision)
    alone = replace(whole, rungs=(rung,), parts=parts)
    settings = SessionSettings(
        FixedIterations(rung.evaluations, tol=1.0),
        carry=start == "warm",
        restart_above=math.inf,
        reset_on_cut=False,
    )
    return Session(bundle.manifest, alone, backend, settings)


def take_turns(
    every: Sequence[Turns], duration: float, progress: Callable[[int, int], None]
) -> tuple[int, float]:
    """Rounds until ``duration`` seconds are over; how many, and how long they took."""
    rng, began, rounds = np.random.default_rng(0), time.monotonic(), 0
    while rounds < FEWEST or time.monotonic() - began < duration:
        for index in rng.permutation(len(every)):
            every[index].take()
            passed = min(time.monotonic() - began, duration)
            progress(int(passed), math.ceil(duration))
        rounds += 1
    return rounds, time.monotonic() - began
