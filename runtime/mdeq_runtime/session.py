"""One stream's equilibrium: each frame is solved from where the last one ended."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, Profile
from edge_mdeq.bundle.precision import check_precision, chosen
from edge_mdeq.errors import ConfigError, EdgeMdeqError, SessionError
from edge_mdeq.fitting import FIT_MODES, Fit, FitMode, fit_image, plan_fit, resize
from mdeq_runtime.backends import Answer, Backend
from mdeq_runtime.budget import Budget
from mdeq_runtime.cuts import CutDetector
from mdeq_runtime.frames import check_frame
from mdeq_runtime.policies import FixedIterations, Policy, UntilDeadline
from mdeq_runtime.reasons import Cold, ColdKind
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.solving import NON_FINITE, Solver, make_solver

__all__ = ["Session", "SessionSettings"]

log = logging.getLogger(__name__)

LATE_FRAMES = 5  # in a row, with the fewest evaluations there are, before it is said


@dataclass(frozen=True)
class SessionSettings:
    """How a session solves.

    Attributes:
        policy: when a solve stops.
        carry: whether a frame may start from the last one's equilibrium; else every frame is cold.
        restart_above: a warm start with a residual above this had little to do with the last frame
            and is given up for a cold one. None: 0.25 after a fixed number of evaluations, 0.75
            after the first evaluation under any other policy.
        reset_on_cut: whether a frame of another scene starts cold, before anything is computed.
        fit: how frames of another size meet the model's: "stretch", "letterbox" or "crop".
        confidence: whether results carry a confidence map.
        precision: "fp32", "int8" or "refined" (int8, and the last evaluations in full precision);
            None: what the bundle was exported for. Under a policy without a fixed number of
            evaluations "refined" runs all of them in full precision.
    """

    policy: Policy = field(default_factory=FixedIterations)
    carry: bool = True
    restart_above: float | None = None
    reset_on_cut: bool = True
    fit: FitMode = "stretch"
    confidence: bool = False
    precision: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise ConfigError(
                f"policy is {self.policy!r}, must be a FixedIterations, UntilTolerance or "
                "UntilDeadline"
            )
        if self.restart_above is not None and not self.restart_above > 0:
            raise ConfigError(f"restart_above is {self.restart_above}, must be positive")
        check_precision(self.precision)
        if self.fit not in FIT_MODES:
            raise ConfigError(f"unknown fit {self.fit!r}, known: {', '.join(FIT_MODES)}")

    @property
    def giving_up(self) -> float:
        """``restart_above``, or what suits the policy."""
        if self.restart_above is not None:
            return self.restart_above
        return 0.25 if isinstance(self.policy, FixedIterations) else 0.75


class Session:
    """Answers the frames of one stream. Calls from several threads are taken one at a time.

    Args:
        manifest: of the bundle.
        profile: the backend's.
        backend: what runs the graphs; shared with other sessions, closed by its owner.
        settings: how to solve.
        budget: the memory limit of the process, if there is one.

    Attributes:
        limit: evaluations that the next frames may have at most, whatever the policy says, a warm
            start that is given up not counted; None: as it says. A governor sets it.

    Raises:
        SessionError: the counts asked for cannot be made of the bundle's rungs, or a tolerance is
            below what its precision can reach.
        MemoryLimitError: there is a limit, and in no form does this stream fit into what is left.
    """

    def __init__(
        self,
        manifest: Manifest,
        profile: Profile,
        backend: Backend,
        settings: SessionSettings | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.settings, self.budget = settings or SessionSettings(), budget
        self.manifest, self.backend = manifest, backend
        asked = self.settings.precision
        self.profile = chosen(profile, asked, manifest.precision, manifest.name)
        self.solver = self.solver_for(self.settings)
        self.state: Any = backend.new_state()
        self.fit: Fit | None = None
        self.epoch: int | None = None  # of the last frame
        self.cuts = CutDetector()
        # why the next frame starts cold; None if it may be warm
        self.cold: Cold | None = Cold("first_frame", "first frame")
        self.limit: int | None = None
        self.late = 0  # frames in a row that were late for all that they had the fewest evaluations
        self.lock = threading.Lock()
        self.changing = threading.Lock()  # held while graphs of another policy are loaded
        self.closed = False

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Result:
        """Answer one frame: a ``Frame``, or a BGR image (h, w, 3) uint8.

        Raises:
            FrameError: not an 8-bit BGR image; the session goes on with the next frame.
            SessionError: closed, or the model is; the solve ended in NaN or infinity even from a
                cold start; or the backend failed. The next frame then starts cold.
            MemoryLimitError: the process outgrew its limit, and nothing is left to give up.
        """
        if not isinstance(frame, Frame):
            frame = Frame(frame, 0, 0.0)
        with self.lock:
            self.check_open()
            try:
                result = self.answer(frame)
                if self.budget is not None:
                    self.budget.watch(self)
                return result
            except EdgeMdeqError:
                raise
            except Exception as error:  # a backend's library, or no memory
                raise SessionError(
                    f"frame {frame.index} could not be answered: {type(error).__name__}: {error}; "
                    "the next one starts cold. If that fails too, open the bundle again"
                ) from error

    def use(self, policy: Policy) -> None:
        """Solve by another policy from the next frame on, which starts from the last equilibrium.

        From any thread; frames go on while graphs are loaded. Earlier policies' stay loaded too.

        Raises:
            SessionError: closed, or the bundle cannot run this policy; the present one stays.
            MemoryLimitError: its graphs do not fit beside what is loaded; the present one stays.
            ConfigError: not a policy.
        """
        with self.changing:
            settings = replace(self.settings, policy=policy)
            self.check_open()
            solver = self.solver_for(settings)
            with self.lock:
                self.check_open()
                self.settings, self.solver, self.late = settings, solver, 0

    def solver_for(self, settings: SessionSettings) -> Solver:
        """The solver for these settings, its graphs loaded and counted."""
        policy, carry, profile = settings.policy, settings.carry, self.profile
        if policy.tol < profile.residual_floor:
            raise SessionError(
                f"tolerance {policy.tol:g} is below what these graphs can reach in half "
                f"precision, {profile.residual_floor:.1e}; raise it, or export without --half"
            )
        in_parts: bool | None = None
        if self.budget is not None:
            wanted = settings.confidence and self.manifest.confidence is not None
            choice = self.budget.plan(self.manifest, profile, policy, carry, wanted, instead=self)
            self.budget.open(self, choice, self.manifest)
            in_parts = choice.form == "parts"
        return make_solver(self.backend, profile, policy, carry, settings.giving_up, in_parts)

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of evaluations that it can give a frame, ascending."""
        return self.solver.counts

    def shed(self) -> str | None:
        """Go on with less memory; what was given up, or None if there is nothing."""
        return self.solver.shed()

    def reset(self, reason: str = "requested", kind: ColdKind = "requested") -> None:
        """Forget the frames so far: the next one starts cold, and its result says why.

        Raises:
            SessionError: closed.
        """
        with self.lock:
            self.check_open()
            self.fit = self.epoch = None
            self.cuts.forget()
            self.cold = Cold(kind, f"reset: {reason}")

    def check_open(self) -> None:
        if self.closed:
            raise SessionError("this session is closed; open a new one with model.session()")

    def answer(self, frame: Frame) -> Result:
        check_frame(frame.image, f"frame {frame.index}")
        started = time.perf_counter()
        fit = self.fit_for(frame)
        self.note_epoch(frame)
        image = fit_image(frame.image, fit)
        cold = self.why_cold(image)
        image = image[..., ::-1]  # BGR to RGB; the backend's copy is the only one
        # should anything fail from here on, also by Ctrl-C, the state is no place to start from
        self.cold = Cold("failed", f"reset: frame {frame.index} could not be answered")
        fitted = time.perf_counter()
        solved = self.solver.solve(image, self.state, cold, fitted - started, self.limit)
        answer = solved.answer
        if not math.isfinite(answer.residual):
            self.cold = NON_FINITE
            raise SessionError(
                f"frame {frame.index}: the solve ended in NaN or infinity from a cold start; the "
                "weights do not suit this solver, or the bundle is damaged"
            )
        self.cold = None
        found = time.perf_counter()
        output, confidence = self.restore(answer, fit)
        done = time.perf_counter()
        self.solver.note_rest(done - found)
        result = Result(
            output=output,
            confidence=confidence,
            iterations=solved.iterations,
            residual=answer.residual,
            converged=answer.residual <= self.settings.policy.tol,
            warm=solved.cold is None,
            reason=solved.cold.text if solved.cold else "",
            times={
                "fit": 1e3 * (fitted - started),
                **solved.times,
                "restore": 1e3 * (done - found),
            },
            index=frame.index,
            timestamp=frame.timestamp,
            labels=self.manifest.labels,
            palette=self.manifest.palette,
            cold=solved.cold.kind if solved.cold else None,
            trace=solved.trace,
        )
        self.watch_deadline(result)
        return result

    def watch_deadline(self, result: Result) -> None:
        """Say it, once, if a deadline is too short even for the fewest evaluations there are."""
        policy, fewest = self.settings.policy, self.counts[0]
        if not isinstance(policy, UntilDeadline) or self.late == LATE_FRAMES:
            return
        late = result.busy_ms > policy.ms and result.iterations <= fewest
        self.late = self.late + 1 if late else 0
        if self.late == LATE_FRAMES:
            log.warning(
                "the deadline of %g ms is shorter than a frame with %d evaluation(s), which took "
                "%.1f ms; every frame gets as many and is late",
                policy.ms, fewest, result.busy_ms,
            )  # fmt: skip

    def why_cold(self, image: NDArray[np.uint8]) -> Cold | None:
        """Why a frame must start from zero; None if it may start from the last equilibrium."""
        if not self.settings.carry:
            return Cold("off", "warm start is off")
        cut = self.cuts(image) if self.settings.reset_on_cut else 0.0
        if self.cold is None and cut:
            return Cold("scene_cut", f"reset: scene cut, {cut:.0%} of full scale")
        return self.cold

    def fit_for(self, frame: Frame) -> Fit:
        """The fit for the frame's size; another size than the last frame's forces a cold start."""
        size = cast("tuple[int, int]", frame.image.shape[:2])
        if self.fit is None or self.fit.frame != size:
            if self.fit is not None:
                self.cuts.forget()
                self.cold = Cold(
                    "frame_size", f"reset: frame size changed from {self.fit.frame} to {size}"
                )
            self.fit = plan_fit(size, self.manifest.input.size, self.settings.fit)
        return self.fit

    def note_epoch(self, frame: Frame) -> None:
        """A source that was opened again may show anything: its first frame starts cold."""
        if self.epoch is not None and self.epoch != frame.epoch:
            self.cuts.forget()
            self.cold = Cold("reconnect", "reset: the source was opened again")
        self.epoch = frame.epoch

    def restore(self, found: Answer, fit: Fit) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """The backend's arrays as the frame's own: at its size, and none of the backend's."""
        if self.manifest.output.kind == "scores":
            return found.output.copy(), None
        mask = own(fit.restore(found.output), found.output)
        if not self.settings.confidence or found.confidence is None:
            return mask, None
        full = resize(found.confidence, *fit.size, "linear")
        return mask, own(fit.restore(full), found.confidence)

    def close(self) -> None:
        """Let go of the state; using the session afterwards is a SessionError."""
        with self.lock:
            self.closed = True
            self.state = None
            if self.budget is not None:
                self.budget.close(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def own(array: NDArray[Any], lent: NDArray[Any]) -> NDArray[Any]:
    """``array``, copied if it is still (a part of) what the backend lent."""
    return array.copy() if np.may_share_memory(array, lent) else array
