"""One stream's equilibrium: each frame is solved from where the last one ended."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, Rung
from edge_mdeq.errors import ConfigError, SessionError
from edge_mdeq.fitting import FIT_MODES, Fit, FitMode, fit_image, plan_fit, resize
from mdeq_runtime.backends import Answer, Backend
from mdeq_runtime.frames import check_frame
from mdeq_runtime.ladder import cold_plan, default_counts, plan
from mdeq_runtime.results import Frame, Result

__all__ = ["Session", "SessionSettings"]


@dataclass(frozen=True)
class SessionSettings:
    """How a session solves.

    Attributes:
        cold: evaluations of f for a frame without a usable predecessor; None: the largest rung.
        warm: evaluations for a frame that starts from the last equilibrium; None: two if the
            ladder has it. 0 never carries a state: every frame is cold.
        tolerance: relative residual at or below which a result counts as converged (0.05 is what
            the authors of DEQ call good convergence).
        restart_above: a warm frame that ends with a residual above this had little to do with the
            last one, such as after a cut; it is answered from a cold start instead.
        fit: how frames of another size meet the model's: "stretch", "letterbox" or "crop".
        confidence: whether results carry a confidence map.
    """

    cold: int | None = None
    warm: int | None = None
    tolerance: float = 0.05
    restart_above: float = 0.25
    fit: FitMode = "stretch"
    confidence: bool = False

    def __post_init__(self) -> None:
        if self.cold is not None and self.cold < 1:
            raise ConfigError(f"cold iterations is {self.cold}, need at least 1")
        if self.warm is not None and self.warm < 0:
            raise ConfigError(f"warm iterations is {self.warm}, need at least 0")
        if not self.tolerance > 0 or not self.restart_above > 0:
            raise ConfigError("tolerance and restart_above must be positive")
        if self.fit not in FIT_MODES:
            raise ConfigError(f"unknown fit {self.fit!r}, known: {', '.join(FIT_MODES)}")


class Session:
    """Answers the frames of one stream. Calls from several threads are taken one at a time.

    Args:
        manifest: of the bundle.
        rungs: the ladder of the backend's profile.
        backend: what runs the graphs; shared with other sessions, closed by its owner.
        settings: how to solve.

    Raises:
        SessionError: the counts asked for cannot be made of the bundle's rungs.
    """

    def __init__(
        self,
        manifest: Manifest,
        rungs: tuple[Rung, ...],
        backend: Backend,
        settings: SessionSettings | None = None,
    ) -> None:
        self.manifest = manifest
        self.settings = settings or SessionSettings()
        cold, warm = default_counts(rungs)
        cold = cold if self.settings.cold is None else self.settings.cold
        warm = warm if self.settings.warm is None else self.settings.warm
        self.warm_plan = plan(rungs, warm) if warm else ()
        self.cold_plan = cold_plan(rungs, cold, self.warm_plan)
        self.backend = backend
        for rung in {*self.cold_plan, *self.warm_plan}:  # and no others
            backend.load(rung)
        self.state: Any = backend.new_state()
        self.fit: Fit | None = None
        self.cold_reason = "first frame"  # why the next frame starts cold; "" if it may be warm
        self.lock = threading.Lock()
        self.closed = False

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Result:
        """Answer one frame: a ``Frame``, or a BGR image (h, w, 3) uint8.

        Raises:
            FrameError: not an 8-bit BGR image; the session goes on with the next frame.
            SessionError: closed, or the solve ended in NaN or infinity even from a cold start.
        """
        if not isinstance(frame, Frame):
            frame = Frame(frame, 0, 0.0)
        with self.lock:
            return self.answer(frame)

    def reset(self, reason: str = "requested") -> None:
        """Forget the carried state: the next frame starts cold, and its result says why."""
        with self.lock:
            self.cold_reason = f"reset: {reason}"

    def answer(self, frame: Frame) -> Result:
        if self.closed:
            raise SessionError("this session is closed; open a new one with model.session()")
        check_frame(frame.image, f"frame {frame.index}")
        started = time.perf_counter()
        fit = self.fit_for(frame)
        image = fit_image(frame.image, fit)[..., ::-1]  # BGR to RGB, once it is small
        fitted = time.perf_counter()
        reason = self.cold_reason or ("" if self.warm_plan else "warm start is off")
        iterations, found = 0, None
        if not reason:
            found = self.solve(self.warm_plan, image)
            iterations = count(self.warm_plan)
            reason = self.why_restart(found.residual)
        if found is None or reason:
            self.state.reset()
            found = self.solve(self.cold_plan, image)
            iterations += count(self.cold_plan)
        if not math.isfinite(found.residual):
            self.cold_reason = "reset: non-finite state"
            raise SessionError(
                f"frame {frame.index}: the solve ended in NaN or infinity from a cold start; the "
                "weights do not suit this solver, or the bundle is damaged"
            )
        self.cold_reason = ""
        solved = time.perf_counter()
        output, confidence = self.restore(found, fit)
        done = time.perf_counter()
        return Result(
            output=output,
            confidence=confidence,
            iterations=iterations,
            residual=found.residual,
            converged=found.residual <= self.settings.tolerance,
            warm=not reason,
            reason=reason,
            times={
                "fit": 1e3 * (fitted - started),
                "solve": 1e3 * (solved - fitted),
                "restore": 1e3 * (done - solved),
            },
            index=frame.index,
            timestamp=frame.timestamp,
        )

    def solve(self, rungs: tuple[Rung, ...], image: NDArray[np.uint8]) -> Answer:
        """Run a chain of rungs; the answer of the last one."""
        for rung in rungs:
            found = self.backend.run(rung, image, self.state)
        return found

    def why_restart(self, residual: float) -> str:
        """Why a warm solve with this residual must be done again from cold; "" if it stands."""
        if not math.isfinite(residual):
            return "reset: non-finite state"
        if residual > self.settings.restart_above:
            return f"reset: residual {residual:.2f} after a warm start"
        return ""

    def fit_for(self, frame: Frame) -> Fit:
        """The fit for the frame's size; another size than the last frame's forces a cold start."""
        size = cast("tuple[int, int]", frame.image.shape[:2])
        if self.fit is None or self.fit.frame != size:
            if self.fit is not None:
                self.cold_reason = f"reset: frame size changed from {self.fit.frame} to {size}"
            self.fit = plan_fit(size, self.manifest.input.size, self.settings.fit)
        return self.fit

    def restore(self, found: Answer, fit: Fit) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """The backend's arrays as the frame's own: at its size, and copied."""
        if self.manifest.output.kind == "scores":
            return found.output.copy(), None
        mask = np.array(fit.restore(found.output))
        if not self.settings.confidence or found.confidence is None:
            return mask, None
        full = resize(found.confidence, *fit.size, "linear")
        return mask, np.array(fit.restore(full), dtype=np.float32)

    def close(self) -> None:
        """Let go of the state; using the session afterwards is a SessionError."""
        with self.lock:
            self.closed = True
            self.state = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def count(rungs: tuple[Rung, ...]) -> int:
    """Evaluations of f that a chain costs."""
    return sum(rung.evaluations for rung in rungs)
