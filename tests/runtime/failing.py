"""A backend that fails in the middle of a frame, and the policies it is tried under."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from streams import CALM

from mdeq_runtime import FixedIterations, Model, Result, Session, UntilDeadline, UntilTolerance
from mdeq_runtime.policies import Policy

NEVER = 1e-9  # a tolerance that no frame meets
POLICIES = [
    FixedIterations(2, cold=4),
    UntilTolerance(NEVER, max_iterations=3),
    UntilDeadline(6e4, NEVER, max_iterations=3),
]
by_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)


class Failing:
    """The real backend, one call of which raises ``error``: before its work, or after it."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.method, self.after, self.left = "", False, 0
        self.error: BaseException = RuntimeError()

    def arm(self, method: str, call: int, error: BaseException, after: bool) -> None:
        """The ``call``-th call of ``method`` from now on fails."""
        self.method, self.left, self.error, self.after = method, call, error, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if name != self.method:
            return found

        def called(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise self.error
            result = found(*args)
            if self.left == 0:
                raise self.error
            return result

        return called


def on(backend: Any, model: Model, policy: Policy, **others: Any) -> Session:
    settings = replace(CALM, policy=policy, **others)
    return Session(model.manifest, model.bundle.profile("ort-cpu"), backend, settings)


def states(session: Session) -> list[bytes]:
    return [array.tobytes() for array in session.state.states[session.state.turn]]


def assert_equal(found: Result, expected: Result) -> None:
    """Bit for bit."""
    assert np.array_equal(found.output, expected.output)
    assert (found.residual, found.iterations) == (expected.residual, expected.iterations)
    assert found.warm == expected.warm
