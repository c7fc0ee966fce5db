"""The parity gate: do the graphs compute what they should, and what does a fixed N cost?

Two questions that must not be mixed: the *export error* (graph against reference at the same solver
and N) is a defect when it is large; the *solver gap* (N evaluations against the converged solve) is
a property of the weights, reported so that a user can choose N. No torch here: what the graphs are
compared with is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts, Profile, Rung, RungParity, Step, Tolerance, Verification
from edge_mdeq.errors import ParityError
from mdeq_export.compose import IMAGE, INJECTION, OUTPUT, RESIDUAL, state_names
from mdeq_export.passes import HoldRounding, run_passes

__all__ = [
    "TOLERANCES",
    "Answer",
    "Problem",
    "Reference",
    "StepPair",
    "require_parity",
    "residual_floor",
    "tolerances_with",
    "verify",
]

REFERENCE_EVALUATIONS = 60
REFERENCE_TOL = 1e-4
SMALL_RESIDUAL = 1e-3  # nobody stops below it
FLOOR_EVALUATIONS = 20
KINDS = ("warm", "cold")  # starts of a solve; in this order, since what is reported is the last's
HELD = 2**28  # bytes of the reference's answers at a time
TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(atol=0.1, rtol=2e-2, min_agreement=0.995)}

Array = NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Answer:
    """A solve's end, for B images: states (B, C_i, H_i, W_i), classes (B, ...), residual (B,)."""

    states: list[Array]
    classes: Array
    residual: Array


@dataclass(frozen=True, eq=False)
class StepPair:
    """One step: what an ``advance-k1`` graph is fed beside u, and what it should give."""

    feeds: dict[str, Array]
    expected: dict[str, Array]


class Problem(Protocol):
    """B images, bound: everything that can be asked about their equilibrium."""

    def injection(self) -> Array: ...

    def converged(self) -> Answer: ...

    def solve(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, Answer]:
        """The end of a solve of each of ``counts`` evaluations, from ``start`` or from zero."""

    def rounding(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, float]:
        """How far single precision is from double after each of ``counts``, relative."""

    def steps(self, start: list[Array] | None, count: int) -> Iterator[StepPair]:
        """``count`` steps one by one."""


class Reference(Protocol):
    """What graphs are compared with."""

    name: Literal["torch", "parts"]

    def bind(self, images: NDArray[np.uint8]) -> Problem:
        """A problem of images (B, H, W, 3) RGB."""


def verify(
    reference: Reference,
    profiles: Mapping[str, Profile],
    root: Path,
    images: NDArray[np.uint8],
    source: str,
    tolerances: Mapping[str, Tolerance],
    batch: int = 1,
    only: Iterable[int] | None = None,
    progress: Progress = lambda message: None,
) -> Verification:
    """Run every rung on ``images`` (count, H, W, 3) beside the reference; measures, never raises.

    Every profile's graphs run in ONNX Runtime on the CPU: what is verified is the graph, not the
    runtime that it is lowered for.

    Args:
        reference: what is right.
        profiles: what was exported, with paths relative to ``root``.
        root: the bundle.
        images: RGB uint8 at the input's size.
        source: where the images come from, for the record.
        tolerances: by precision; recorded beside what is found, see ``require_parity``.
        batch: images that a graph takes at once.
        only: the evaluations of the rungs to run, all by default.
        progress: told what is being done.
    """
    rungs = [
        (name, rung)
        for name, profile in profiles.items()
        for rung in profile.rungs
        if only is None or rung.evaluations in set(only)
    ]
    counts = sorted({rung.evaluations for _, rung in rungs})
    found: list[list[RungParity]] = [[] for _ in rungs]
    rounding = dict.fromkeys(range(len(rungs)), 0.0)
    steps: dict[tuple[str, Step], float] = {}
    residual = 0.0
    progress("reference solves")
    for solves in batches(reference, images, batch, counts):
        residual = max(residual, *(float(s.goal.residual.max()) for s in solves))
        for k, (name, rung) in enumerate(rungs):
            progress(f"parity of {name}, {rung.evaluations} evaluations")
            session = open_session(root / rung.graph)
            allowed = tolerances[rung.steps[0].precision].rtol
            for solve in solves:
                parity = compare(session, solve, rung.evaluations)
                first, apart = not found[k], not parity.state_rel <= allowed
                found[k].append(parity)
                if first or apart:
                    own = solve.rounding(rung.evaluations, KINDS if apart else ("cold",))
                    rounding[k] = max(rounding[k], own)
                if apart and rounding[k] > allowed:
                    key = (name, rung.steps[0])
                    steps[key] = max(
                        steps.get(key, 0.0), step_error(profiles[name], rung, root, solve)
                    )
    return Verification(
        images=len(images),
        source=source,
        tolerances=dict(tolerances),
        reference_evaluations=REFERENCE_EVALUATIONS,
        reference_residual=residual,
        backend=f"onnxruntime {ort.__version__}, CPU",
        rungs=tuple(
            replace(
                combine(parities),
                profile=name,
                precision=rung.steps[0].precision,
                rounding=rounding[k],
                step_rel=steps.get((name, rung.steps[0])),
                reference=reference.name,
            )
            for k, ((name, rung), parities) in enumerate(zip(rungs, found, strict=True))
        ),
    )


def require_parity(report: Verification) -> None:
    """Raise ParityError if the export error of any rung exceeds the tolerance of its precision."""
    for rung in report.rungs:
        allowed = report.tolerances[rung.precision]
        where = f"{rung.profile}: solve-k{rung.evaluations} in {rung.precision}"
        relative = rung.state_rel if rung.step_rel is None else rung.step_rel
        # Written so that NaN fails.
        if not relative <= allowed.rtol:
            what = "a single step" if rung.step_rel is not None else "its states"
            raise ParityError(
                f"{where} differs from {rung.reference} by {relative:.2e} in {what}, relative; "
                f"allowed is {allowed.rtol:.0e} (--rtol); nothing was written"
            )
        if rung.step_rel is not None:  # a sensitive solve: the whole of it decides nothing
            continue
        if not rung.state_max_abs <= allowed.atol:
            raise ParityError(
                f"{where} differs from {rung.reference} by {rung.state_max_abs:.2e} in its "
                f"states, allowed is {allowed.atol:.0e} (--atol); nothing was written"
            )
        if not rung.answer_agreement >= allowed.min_agreement:
            raise ParityError(
                f"{where} agrees with {rung.reference} on {rung.answer_agreement:.3%} of the "
                f"answers, required is {allowed.min_agreement:.1%} (--min-agreement); nothing was "
                "written"
            )


def tolerances_with(**given: float | None) -> dict[str, Tolerance]:
    """The usual tolerances by precision, with what is given (and not None) in their place."""
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return {precision: replace(usual, **changes) for precision, usual in TOLERANCES.items()}


class Solves:
    """What the reference gives for B images, from the two starts that a device knows.

    The gate needs the warm one too: the first convolutions of f see nothing at a state of zero, and
    a fault in them would pass.
    """

    def __init__(
        self, reference: Reference, images: NDArray[np.uint8], counts: Sequence[int]
    ) -> None:
        self.images, self.problem, self.counts = images, reference.bind(images), counts
        self.goal = self.problem.converged()
        cold = [np.zeros_like(z) for z in self.goal.states]
        self.starts = {"warm": self.goal.states, "cold": cold}
        self.answers = {
            "warm": self.problem.solve(self.goal.states, counts),
            "cold": self.problem.solve(None, counts),
        }
        self.roundings: dict[str, dict[int, float]] = {}

    def rounding(self, evaluations: int, kinds: Iterable[str]) -> float:
        """The reference's own rounding error after so many, the largest of the starts."""
        for kind in kinds:
            if kind not in self.roundings:
                self.roundings[kind] = self.problem.rounding(self.starts[kind], self.counts)
        return max(self.roundings[kind][evaluations] for kind in kinds)


def batches(
    reference: Reference, images: NDArray[np.uint8], batch: int, counts: Sequence[int]
) -> Iterator[list[Solves]]:
    """The reference's answers, as many at a time as may be held in memory."""
    held: list[Solves] = []
    for first in range(0, len(images), batch):
        group = np.take(images, range(first, first + batch), axis=0, mode="wrap")
        held.append(Solves(reference, group, counts))
        size = sum(z.nbytes for z in held[0].goal.states) * (2 * len(counts) + 2)
        if (len(held) + 1) * size > HELD:
            yield held
            held = []
    if held:
        yield held


def compare(session: ort.InferenceSession, solves: Solves, evaluations: int) -> RungParity:
    """One rung on B images. The solver gap is the cold start's."""
    absolute, relative, residuals, agreements = [], [], [], []
    goal = solves.goal
    scales = len(goal.states)
    names = [OUTPUT, RESIDUAL, *state_names(scales, "next_state")]
    for kind in KINDS:
        wanted = solves.answers[kind][evaluations]
        states = dict(zip(state_names(scales), solves.starts[kind], strict=True))
        answer, residual, *found = session.run(names, {IMAGE: solves.images} | states)
        classes = answer.argmax(axis=1) if answer.ndim == 2 else answer
        pairs = list(zip(found, wanted.states, strict=True))
        absolute.append(max(float(np.abs(a - b).max()) for a, b in pairs))
        relative.append(distance(found, wanted.states))
        # At the equilibrium itself the residual is rounding: compare it with what matters.
        gap = np.abs(residual - wanted.residual) / np.maximum(wanted.residual, SMALL_RESIDUAL)
        residuals.append(float(gap.max()))
        agreements.append(float((classes == wanted.classes).mean()))
    return RungParity(
        profile="",
        precision="",
        evaluations=evaluations,
        state_max_abs=float(np.max(absolute)),
        state_rel=float(np.max(relative)),
        residual_max_rel=float(np.max(residuals)),
        answer_agreement=float(np.min(agreements)),
        solver_gap_state=distance(found, goal.states),
        solver_gap_agreement=float((classes == goal.classes).mean()),
        residual=float(residual.mean()),
    )


def step_error(profile: Profile, rung: Rung, root: Path, solves: Solves) -> float:
    """Largest relative error of a single step that starts from the reference's own state."""
    precision = rung.steps[0].precision
    (parts,) = [parts for parts in profile.parts if parts.precision == precision]
    single = next(step for step in parts.advance if step.evaluations == 1)
    session = open_session(root / single.graph)
    names = [output.name for output in session.get_outputs()]
    (takes,) = [i for i in session.get_inputs() if i.name == INJECTION]
    half = "float16" in takes.type
    u = solves.problem.injection().astype(np.float16 if half else np.float32)
    worst = 0.0
    for start in (solves.goal.states, None):
        for pair in solves.problem.steps(start, rung.evaluations):
            found = dict(zip(names, session.run(names, {INJECTION: u} | pair.feeds), strict=True))
            for kind in ("value", "next_state"):
                keys = [name for name in names if name.startswith(kind)]
                if keys:
                    gap = distance([found[k] for k in keys], [pair.expected[k] for k in keys])
                    worst = max(worst, gap) if np.isfinite(gap) else float("inf")
    return worst


def residual_floor(
    parts: Parts, root: Path, reference: Reference, images: NDArray[np.uint8], batch: int = 1
) -> float:
    """The relative residual that an ``advance`` graph does not get below, however long it runs.

    From the reference's equilibrium of each group of images, one evaluation at a time without a
    history; the lowest residual of each image, the highest of all.
    """
    single = next(rung for rung in parts.advance if rung.evaluations == 1)
    session = open_session(root / single.graph)
    names = [output.name for output in session.get_outputs()]
    takes = {i.name: i.type for i in session.get_inputs()}
    floors = []
    for first in range(0, len(images), batch):
        group = np.take(images, range(first, first + batch), axis=0, mode="wrap")
        problem = reference.bind(group)
        goal = problem.converged()
        half = "float16" in takes[INJECTION]
        feeds = {INJECTION: problem.injection().astype(np.float16 if half else np.float32)}
        for given in session.get_inputs():
            if given.name.startswith("history"):
                shape = [n if isinstance(n, int) else len(group) for n in given.shape]
                feeds[given.name] = np.zeros(shape, np.float32)
        states, lowest = goal.states, np.full(len(group), np.inf)
        for _ in range(FLOOR_EVALUATIONS):
            fed = feeds | dict(zip(state_names(len(states)), states, strict=True))
            found = dict(zip(names, session.run(names, fed), strict=True))
            lowest = np.fmin(lowest, found[RESIDUAL])
            own = "value" if "value_0" in found else "next_state"
            states = [found[name] for name in state_names(len(states), own)]
        floors.append(float(lowest.max()))
    return max(floors)


def open_session(path: Path) -> ort.InferenceSession:
    """A graph on the CPU; what it writes in FP16 is rounded there, as a device would round it."""
    options = ort.SessionOptions()
    # Threads that spin while they wait gain little here, and cost much where others compute.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cpu = ["CPUExecutionProvider"]
    model = ir.load(path)
    if all(value.dtype != ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
        return ort.InferenceSession(str(path), options, providers=cpu)
    run_passes(model.graph, [HoldRounding()])
    # Beside the graph, where its weights lie: references to them lead into no other folder.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as held:
        ir.save(model, held.name)
        return ort.InferenceSession(held.name, options, providers=cpu)


def distance(states: Sequence[Array], reference: Sequence[Array]) -> float:
    """``||z - z*|| / ||z*||`` over all scales, the largest of any sample."""
    gap = sum(squares(z - r) for z, r in zip(states, reference, strict=True))
    size = sum(squares(r) for r in reference)
    return float(np.sqrt(np.max(gap / np.maximum(size, np.finfo(np.float64).tiny))))


def squares(x: Array) -> Array:
    """Sum of squares per sample, in double precision."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.asarray((flat * flat).sum(axis=1))


def combine(found: list[RungParity]) -> RungParity:
    """Worst case of what the gate judges, mean of what it reports."""

    def worst(name: str) -> float:
        return float(np.max([getattr(r, name) for r in found]))

    def mean(name: str) -> float:
        return float(np.mean([getattr(r, name) for r in found]))

    return replace(
        found[0],
        state_max_abs=worst("state_max_abs"),
        state_rel=worst("state_rel"),
        residual_max_rel=worst("residual_max_rel"),
        answer_agreement=mean("answer_agreement"),
        solver_gap_state=mean("solver_gap_state"),
        solver_gap_agreement=mean("solver_gap_agreement"),
        residual=mean("residual"),
    )
