"""What a viewer may ask of a running session, read strictly and answered with reasons."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec

from edge_mdeq.errors import ConfigError
from mdeq_runtime.policies import FixedIterations, Policy, UntilDeadline, UntilTolerance

__all__ = ["Controllable", "describe_policy", "read_policy"]

Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
# not "above 0": msgspec compares with the least denormal, which is 0 in threads that ONNX Runtime
# has set so
Positive = Annotated[float, msgspec.Meta(ge=1e-9, le=1e6)]


@runtime_checkable
class Controllable(Protocol):
    """A session whose policy can be changed while it runs."""

    def use(self, policy: Policy) -> None: ...
    def reset(self, reason: str = "requested") -> None: ...


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """A policy as JSON; what is left out keeps its default."""

    policy: Literal["fixed", "tolerance", "deadline"]
    iterations: Count | None = None
    tolerance: Positive | None = None
    deadline_ms: Positive | None = None
    max_iterations: Count | None = None


def read_policy(body: bytes) -> Policy:
    """The policy that a request asks for.

    Raises:
        ConfigError: it is not JSON, of another form, or makes no sense.
    """
    try:
        wish = msgspec.json.decode(body, type=Wish)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is no policy: {error}") from error
    given: dict[str, Any] = {} if wish.tolerance is None else {"tol": wish.tolerance}
    if wish.policy == "fixed":
        return FixedIterations(wish.iterations, **given)
    if wish.max_iterations is not None:
        given["max_iterations"] = wish.max_iterations
    if wish.policy == "tolerance":
        return UntilTolerance(**given)
    if wish.deadline_ms is None:
        raise ConfigError("this is no policy: a deadline needs deadline_ms")
    return UntilDeadline(wish.deadline_ms, **given)


def describe_policy(policy: Policy) -> dict[str, str | int | float | None]:
    """A policy in the form that ``read_policy`` reads."""
    if isinstance(policy, FixedIterations):
        return {"policy": "fixed", "iterations": policy.n, "tolerance": policy.tol}
    common = {"tolerance": policy.tol, "max_iterations": policy.max_iterations}
    if isinstance(policy, UntilTolerance):
        return {"policy": "tolerance", **common}
    return {"policy": "deadline", "deadline_ms": policy.ms, **common}
