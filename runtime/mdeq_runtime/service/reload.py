"""A session whose bundle is opened again while frames go on, and kept if the new one is no good.

The new model is loaded beside the old one, in another thread, and answers the newest pictures
before it takes over between two frames, which thus start from an equilibrium of its own. Its graphs
take turns with the frames: two solves at once need memory for the values of both, and ONNX
Runtime's arena keeps what it has got. Where both models do not fit into the memory limit, the new
one is checked as far as it can be without loading it, the old one is let go of, and loaded again if
the new one fails after all; frames wait meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, open_bundle
from edge_mdeq.errors import BundleError, EdgeMdeqError, MemoryLimitError, SessionError
from mdeq_runtime.backends import PredictsMemory
from mdeq_runtime.memory import trim
from mdeq_runtime.model import Model
from mdeq_runtime.planner import choices, pick
from mdeq_runtime.policies import Policy
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.service.rehearsal import Newest, in_turn, rehearse
from mdeq_runtime.service.turns import Turns
from mdeq_runtime.session import Session, SessionSettings

__all__ = ["ReloadableSession"]

CLOSE_S = 0.3  # for a reload that is under way


class ReloadableSession:
    """Answers frames like the session of a model, by whatever model is there now.

    Args:
        path: of the bundle; a link is followed anew at each reload.
        model: opened from it; from now on it is closed here.
        on_change: told the model that has taken over, and None when for a moment there is none.

    Attributes:
        model, session: those that answer frames now.
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        on_change: Callable[[Model | None], None] = lambda model: None,
    ) -> None:
        self.path, self.place, self.on_change = path, path.resolve(), on_change
        self.model, self.session = model, model.session()
        self.answering = Turns()  # held for a frame, and to change the model between two
        self.changing = threading.RLock()  # held while graphs are loaded
        self.newest = Newest()
        self.lost: EdgeMdeqError | None = None

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Result:
        """Answer one frame; see ``Session``."""
        with self.answering:
            if self.lost is not None:
                raise self.lost
            result = self.session(frame)
        self.newest.note(frame)
        return result

    def use(self, policy: Policy) -> None:
        """Solve by another policy; see ``Session.use``."""
        with self.changing:
            self.session.use(policy)

    def reset(self, reason: str = "requested") -> None:
        """Let the next frame start cold."""
        with self.answering:
            self.session.reset(reason)

    @property
    def manifest(self) -> Manifest:
        return self.session.manifest

    @property
    def settings(self) -> SessionSettings:
        return self.session.settings

    @property
    def counts(self) -> tuple[int, ...]:
        return self.session.counts

    @property
    def limit(self) -> int | None:
        """Evaluations that a frame may have at most."""
        return self.session.limit

    @limit.setter
    def limit(self, most: int | None) -> None:
        self.session.limit = most

    def reload(self) -> None:
        """Open the bundle again, and answer by it from the next frame on.

        Policy and settings are those of now. The carried state is another model's: the next frame
        starts from what the new one found for the newest picture, or cold ("reload") if no frame
        was answered for a second, or both models do not fit. If this raises, frames go on as
        before.

        Raises:
            BundleError: the bundle is missing, altered or incomplete, or for another task or other
                classes than the outputs were opened for.
            SessionError: it cannot run the present policy, or gives NaN or infinity.
            MemoryLimitError: it does not fit, or not beside the present one, which could not be
                loaded again.
        """
        with self.changing:
            place = self.path.resolve()
            try:
                model, session = self.open(place)
            except MemoryLimitError as error:
                self.exchange(place, error)
                return
            if model.budget is not None and self.model.budget is not None:
                model.budget.take_over(self.model.budget)
            with self.answering:
                before = self.model, self.session
                self.take(place, model, session)
            self.on_change(model)
            close(*before)

    def open(self, place: Path, after: Model | None = None) -> tuple[Model, Session]:
        """A model and its session, which has answered pictures.

        ``after``: the model that was closed before, if none answers frames now.
        """
        now = self.model
        model = Model(
            place, self.settings, now.threads, now.cache,
            device=now.device, memory_limit=now.limit, after=after,
            require_signature=now.require_signature,
        )  # fmt: skip
        session: Session | None = None
        try:
            check_alike(model.manifest, now.manifest)
            check_place(model.profile, now.profile, place)
            fit = self.session.fit
            size = fit.frame if fit is not None else model.manifest.input.size
            if model.budget is not None and now.budget is not None:
                model.budget.frame = now.budget.frame
                if after is None:
                    model.budget.beside += 3 * size[0] * size[1]  # the newest picture
            session = model.session()
            if after is not None:
                rehearse(session, size)
            else:
                with in_turn(model, self.answering), self.newest.look():
                    rehearse(session, size, self.newest)
        except BaseException:
            close(model, session)
            raise
        return model, session

    def take(self, place: Path, model: Model, session: Session) -> None:
        """Answer by this model from now on; between two frames."""
        if session.counts == self.session.counts:  # else a governor learns anew
            session.limit = self.session.limit
        self.place, self.model, self.session = place, model, session

    def exchange(self, place: Path, error: MemoryLimitError) -> None:
        """The same where both do not fit: the old model goes before the new one is loaded."""
        self.check(place)
        try:
            there = open_bundle(self.place, verify=True).manifest == self.model.manifest
        except BundleError:
            there = False
        if not there:
            raise MemoryLimitError(
                f"{place} does not fit beside the present bundle, which is no longer in "
                f"{self.place} and so could not be loaded again; start again to change it"
            ) from error
        with self.answering:
            before = self.model
            self.on_change(None)
            close(before, self.session)
            try:
                self.take(place, *self.open(place, before))
            except Exception:
                self.restore(before)
                raise
            finally:
                self.on_change(self.model if self.lost is None else None)

    def check(self, place: Path) -> None:
        """See that a bundle is whole, and fits once the present model is gone; nothing is loaded.

        Raises:
            BundleError, SessionError, MemoryLimitError: as ``reload``.
        """
        now, settings = self.model, self.settings
        bundle = open_bundle(place, verify=True, require_signature=now.require_signature)
        check_alike(bundle.manifest, now.manifest)
        backend, name = now.open_backend(bundle)
        try:
            check_place(name, now.profile, place)
            if now.budget is not None and now.limit is not None:
                assert isinstance(backend, PredictsMemory)  # of the same kind as the present one
                found = choices(
                    bundle.manifest,
                    bundle.profile(name),
                    backend.footprint,
                    settings.policy,
                    settings.carry,
                    base=now.budget.base,
                    frame=now.budget.frame,
                    beside=now.budget.beside,
                    confidence=settings.confidence and bundle.manifest.confidence is not None,
                )
                pick(found, now.limit, bundle.manifest.name)
        finally:
            backend.close()

    def restore(self, before: Model) -> None:
        """The old model again. If that fails too, the next frame raises it."""
        try:
            self.take(self.place, *self.open(self.place, before))
        except Exception as error:
            self.lost = SessionError(
                f"the bundle in {self.place} could not be loaded again after a reload that "
                f"failed ({error}); start again"
            )

    def close(self) -> None:
        """Let go of model and session; a reload that is under way is waited for, but not long."""
        if self.changing.acquire(timeout=CLOSE_S):
            with self.answering:
                close(self.model, self.session)
            self.changing.release()

    def __enter__(self) -> ReloadableSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_alike(new: Manifest, old: Manifest) -> None:
    """See that a bundle can take another one's place under outputs that are open.

    Raises:
        BundleError: it is for another task, or has other classes.
    """
    again = "start the run again to change that"
    if new.task != old.task:
        raise BundleError(f"{new.name} is for {new.task}, this run for {old.task}; {again}")
    if new.labels != old.labels:
        raise BundleError(
            f"{new.name} has other classes ({', '.join(new.labels)}) than this run's outputs were "
            f"opened for ({', '.join(old.labels)}); {again}"
        )


def check_place(profile: str, present: str, place: Path) -> None:
    """See that a bundle does not go from a GPU to the CPU, where it may be too slow.

    Raises:
        BundleError: it would.
    """
    if profile == "ort-cpu" and present != profile:
        raise BundleError(
            f"{place} would run on the CPU, the present bundle runs on {present}; build its "
            f"engines first: edge-mdeq engine {place}"
        )


def close(model: Model, session: Session | None) -> None:
    """Let go of both, and of the pages that they leave."""
    if session is not None:
        session.close()
    model.close()
    trim()
