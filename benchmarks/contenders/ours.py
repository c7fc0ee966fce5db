"""This project: every rung of the bundle, through the session that ``edge-mdeq run`` uses."""

from __future__ import annotations

from functools import partial
from typing import Any

from contenders.base import Answer, Case, Contender
from edge_mdeq.bundle import Bundle, Rung, open_bundle

__all__ = ["label", "ours"]

PROFILE = "ort-cpu"
LARGE = 2  # evaluations whose rung alone stands for a model that is too large to be timed
BACKENDS: dict[str, Any] = {}  # one per bundle, whose graphs share an arena as in any process


def ours(case: Case) -> list[Contender]:
    """A contender per rung and start."""
    bundle = open_bundle(case.bundle)
    rungs = bundle.profile(PROFILE).rungs
    if case.memory_only:
        rungs = tuple(rung for rung in rungs if rung.evaluations == LARGE) or rungs[:1]
    return [
        Contender(
            name=f"edge-mdeq, {label(rung)}, {start}",
            kind="ours",
            prepare=partial(prepare, bundle, rung, start, case.threads),
            precision=precision(rung),
            start=start,
            evaluations=rung.evaluations,
            steps=label(rung),
            memory=start == "cold",
        )
        for start in (("cold",) if case.memory_only else ("cold", "warm"))
        for rung in rungs
    ]


def label(rung: Rung) -> str:
    """Its steps, such as "7 int8 + 1 fp32"."""
    return " + ".join(f"{step.evaluations} {step.precision}" for step in rung.steps)


def precision(rung: Rung) -> str:
    """That of all its steps, or "refined" where the last ones are more precise."""
    found = dict.fromkeys(step.precision for step in rung.steps)
    return next(iter(found)) if len(found) == 1 else "refined"


def prepare(bundle: Bundle, rung: Rung, start: Any, threads: int) -> Answer:
    """A session that has this rung alone."""
    from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
    from mdeq_runtime.bench.benchmark import session_for

    key = str(bundle.path)
    if key not in BACKENDS:
        BACKENDS[key] = OrtCpuBackend(bundle, threads)
    solving = session_for(bundle, PROFILE, BACKENDS[key], rung, start)
    return lambda image: solving(image[..., ::-1]).residual  # a session takes BGR
