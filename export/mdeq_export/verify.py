"""The parity gate: do the graphs compute what they should, and what does a fixed N cost?

Two questions that must not be mixed: the *export error* (graph against reference at the same solver
and N) is a defect when it is large; the *solver gap* (N evaluations against the converged solve) is
a property of the weights, reported so that a user can choose N. No torch here: what the graphs are
compared with is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_mdeq.bundle import Profile, Rung, RungParity, Tolerance, Verification
from edge_mdeq.bundle.precision import precision_of
from edge_mdeq.errors import ParityError
from mdeq_export.answers import NEXT, Answer, Gap, agreement, distance, largest, worst
from mdeq_export.compose import IMAGE, INJECTION, RESIDUAL, state_names
from mdeq_export.sessions import open_session

__all__ = [
    "TOLERANCES",
    "Answer",
    "Problem",
    "Reference",
    "StepPair",
    "require_parity",
    "tolerances_with",
    "verify",
]

REFERENCE_EVALUATIONS = 60
REFERENCE_TOL = 1e-4
HELD = 2**28  # bytes of the reference's answers at a time
TOLERANCES = {"fp32": Tolerance(), "fp16": Tolerance(atol=0.1, rtol=2e-2, min_agreement=0.995)}

Array = NDArray[Any]
Progress = Callable[[str], None]


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
    comparisons = [
        Comparison(name, profile, rung, root, rtol_of(precision_of(rung), tolerances))
        for name, profile in profiles.items()
        for rung in profile.rungs
        if only is None or rung.evaluations in set(only)
    ]
    counts = sorted({comparison.evaluations for comparison in comparisons})
    residual = 0.0
    progress("reference solves")
    for held in batches(reference, images, batch, counts):
        residual = max(residual, *(float(solves.goal.residual.max()) for solves in held))
        for comparison in comparisons:
            progress(f"parity of {comparison.name}, {comparison.evaluations} evaluations")
            comparison.run(held)
    return Verification(
        images=len(images),
        source=source,
        tolerances=dict(tolerances),
        reference_evaluations=REFERENCE_EVALUATIONS,
        reference_residual=residual,
        backend=f"onnxruntime {ort.__version__}, CPU",
        rungs=tuple(comparison.outcome(reference.name) for comparison in comparisons),
    )


def rtol_of(precision: str, tolerances: Mapping[str, Tolerance]) -> float:
    """Relative difference of the states from which on rounding is asked about; for int8 none is."""
    return tolerances[precision].rtol if precision in tolerances else float("inf")


def require_parity(report: Verification) -> None:
    """Raise ParityError if the export error of any rung exceeds the tolerance of its precision.

    A precision without a tolerance is not judged here.
    """
    for rung in report.rungs:
        allowed = report.tolerances.get(rung.precision)
        if allowed is None:  # int8 is judged by where it ends: see ``quantize.gate``
            continue
        where = f"{rung.profile}: solve-k{rung.evaluations} in {rung.precision}"
        step = rung.step_rel if np.isfinite(rung.state_rel) else None  # no rounding gives NaN
        relative = rung.state_rel if step is None else step
        # Written so that NaN fails.
        if not relative <= allowed.rtol:
            what = "its states" if step is None else "a single step"
            raise ParityError(
                f"{where} differs from {rung.reference} by {relative:.2e} in {what}, relative; "
                f"allowed is {allowed.rtol:.0e} (--rtol); nothing was written"
            )
        if step is not None:  # a sensitive solve: the whole of it decides nothing
            continue
        if not rung.state_max_abs <= allowed.atol:
            raise ParityError(
                f"{where} differs from {rung.reference} by {rung.state_max_abs:.2e} in its "
                f"states, allowed is {allowed.atol:.0e} (--atol); nothing was written"
            )
        for name, gap in rung.outputs.items():
            if not gap <= allowed.atol:
                raise ParityError(
                    f"{where} differs from {rung.reference} by {gap:.2e} in its output {name!r}, "
                    f"allowed is {allowed.atol:.0e} (--atol); nothing was written"
                )
        if not rung.answer_agreement >= allowed.min_agreement:
            raise ParityError(
                f"{where} agrees with {rung.reference} on {rung.answer_agreement:.3%} of the "
                f"answers, required is {allowed.min_agreement:.1%} (--min-agreement); nothing was "
                "written"
            )


def tolerances_with(**given: float | None) -> dict[str, Tolerance]:
    """The usual tolerances by precision, with what is given (and not None) in their place.

    Raises:
        ConfigError: a senseless one.
    """
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

    def rounding(self, evaluations: int, kinds: Iterable[str], enough: float) -> float:
        """The reference's own rounding error after so many, the largest of the starts; no further
        one is asked for once it is above ``enough``.
        """
        found = 0.0
        for kind in kinds:
            if kind not in self.roundings:
                self.roundings[kind] = self.problem.rounding(self.starts[kind], self.counts)
            found = max(found, self.roundings[kind][evaluations])
            if found > enough:
                break
        return found


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


class Comparison:
    """One rung beside the reference, image by image.

    Args:
        name, profile: which profile the rung is of.
        rung: what is compared.
        root: the bundle.
        rtol: relative difference of the states from which on it is asked whether they round alike.
    """

    def __init__(self, name: str, profile: Profile, rung: Rung, root: Path, rtol: float) -> None:
        self.name, self.profile, self.rung, self.root, self.rtol = name, profile, rung, root, rtol
        self.precision, self.evaluations = precision_of(rung), rung.evaluations
        self.found: list[RungParity] = []
        self.rounding = 0.0
        self.step: float | None = None

    def run(self, held: Iterable[Solves]) -> None:
        """Compare on further images."""
        session = open_session(self.root / self.rung.graph)
        for solves in held:
            gaps, parity = self.compare(session, solves)
            self.found.append(parity)
            # NaN is apart
            self.examine([k for k, gap in gaps.items() if not gap.state_rel <= self.rtol], solves)

    def compare(
        self, session: ort.InferenceSession, solves: Solves
    ) -> tuple[dict[str, Gap], RungParity]:
        """The differences by start, the larger of them, and the solver gap of the cold one."""
        warm = run_graph(session, solves.images, solves.starts["warm"])
        gaps = {"warm": Gap.between(warm, solves.answers["warm"][self.evaluations])}
        del warm  # of the size of a state: not beside the next
        cold = run_graph(session, solves.images, solves.starts["cold"])
        gaps["cold"] = Gap.between(cold, solves.answers["cold"][self.evaluations])
        both = list(gaps.values())
        return gaps, RungParity(
            profile=self.name,
            precision=self.precision,
            evaluations=self.evaluations,
            state_max_abs=worst(gap.state_max_abs for gap in both),
            state_rel=worst(gap.state_rel for gap in both),
            residual_max_rel=worst(gap.residual_max_rel for gap in both),
            answer_agreement=float(np.min([gap.answer_agreement for gap in both])),
            outputs=largest([gap.outputs for gap in both]),
            solver_gap_state=distance(cold.states, solves.goal.states),
            solver_gap_agreement=agreement(cold, solves.goal),
            residual=float(cold.residual.mean()),
        )

    def examine(self, apart: Sequence[str], solves: Solves) -> None:
        """Where a graph is apart, ask how far rounding alone moves the reference from these starts;
        where that is too far to compare whole solves, compare single steps, once.

        Double precision is ten times slower: nothing is asked where nothing is apart.
        """
        if not apart or self.step is not None:
            return
        self.rounding = max(self.rounding, solves.rounding(self.evaluations, apart, self.rtol))
        if self.rounding > self.rtol:
            self.step = step_error(self.profile, self.rung, self.root, solves)

    def outcome(self, reference: Literal["torch", "parts"]) -> RungParity:
        """Worst case of what the gate judges, mean of what it reports."""
        return replace(
            self.found[0],
            state_max_abs=self.over_images("state_max_abs", np.max),
            state_rel=self.over_images("state_rel", np.max),
            residual_max_rel=self.over_images("residual_max_rel", np.max),
            answer_agreement=self.over_images("answer_agreement", np.mean),
            outputs=largest([parity.outputs for parity in self.found]),
            solver_gap_state=self.over_images("solver_gap_state", np.mean),
            solver_gap_agreement=self.over_images("solver_gap_agreement", np.mean),
            residual=self.over_images("residual", np.mean),
            rounding=self.rounding,
            step_rel=self.step,
            reference=reference,
        )

    def over_images(self, name: str, how: Callable[[list[float]], Any]) -> float:
        """One number of all that were found."""
        return float(how([getattr(parity, name) for parity in self.found]))


def run_graph(session: ort.InferenceSession, images: Array, start: list[Array]) -> Answer:
    """What a ``solve`` graph answers to B images from given states."""
    names = [output.name for output in session.get_outputs()]
    feeds = {IMAGE: images} | dict(zip(state_names(len(start)), start, strict=True))
    found = dict(zip(names, session.run(names, feeds), strict=True))
    states = [found.pop(name) for name in state_names(len(start), NEXT)]
    return Answer.read(states, found.pop(RESIDUAL), found)


def step_error(profile: Profile, rung: Rung, root: Path, solves: Solves) -> float:
    """Largest relative error of a single step that starts from the reference's own state."""
    precision = rung.steps[0].precision
    (parts,) = [parts for parts in profile.parts if parts.precision == precision]
    single = next(step for step in parts.advance if step.evaluations == 1)
    session = open_session(root / single.graph)
    outputs = [output.name for output in session.get_outputs()]
    groups = [[name for name in outputs if name.startswith(k)] for k in ("value", NEXT)]
    u = solves.problem.injection().astype(injection_type(session))
    errors = [0.0]
    for start in (solves.goal.states, None):
        for pair in solves.problem.steps(start, rung.evaluations):
            values = session.run(outputs, {INJECTION: u} | pair.feeds)
            found = dict(zip(outputs, values, strict=True))
            errors += [
                distance([found[name] for name in group], [pair.expected[name] for name in group])
                for group in groups
                if group
            ]
    return worst(error if np.isfinite(error) else np.inf for error in errors)


def injection_type(session: ort.InferenceSession) -> type[np.floating[Any]]:
    """The precision that an ``advance`` graph takes its injection in."""
    (takes,) = [given.type for given in session.get_inputs() if given.name == INJECTION]
    return np.float16 if "float16" in takes else np.float32
