"""Streams of frames through a backend, and what is expected of them."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, open_bundle
from mdeq_runtime import (
    FixedIterations,
    Result,
    Session,
    SessionSettings,
    UntilDeadline,
    UntilTolerance,
)
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.policies import Policy

Picture = NDArray[np.uint8]

PROFILES = ("tensorrt-8", "tensorrt-10", "tensorrt-11", "tensorrt-rtx")

# starts cold for neither its residual nor its picture
CALM = SessionSettings(restart_above=1e9, reset_on_cut=False, confidence=True)
POLICIES = {
    "fixed": FixedIterations(2),
    "tolerance": UntilTolerance(1e-9, max_iterations=3),
    "deadline": UntilDeadline(60_000, tol=1e-9, max_iterations=3),
}


def for_every_version(bundle: Path, out: Path) -> Bundle:
    """A copy whose graphs for ONNX Runtime stand for those of each TensorRT as well."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text())
    profiles = manifest["profiles"]
    profiles |= dict.fromkeys(PROFILES, profiles["ort-cpu"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(out)


def picture(seed: int, size: tuple[int, int] = (64, 96)) -> Picture:
    """Coarse spots of all colours."""
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return np.ascontiguousarray(np.kron(small, np.ones((8, 8, 1), np.uint8)))


FRAMES = [picture(seed) for seed in (0, 0, 1, 2, 2, 3, 3, 3)]


def session(backend: Any, bundle: Bundle, profile: str, policy: Policy) -> Session:
    settings = replace(CALM, policy=policy)
    return Session(bundle.manifest, bundle.profile(profile), backend, settings)


def play(backend: Any, bundle: Bundle, profile: str, policy: Policy) -> list[Result]:
    """A cold frame, warm ones, and after a reset a cold one and warm ones again."""
    with session(backend, bundle, profile, policy) as stream:
        results = [stream(frame) for frame in FRAMES[:3]]
        stream.reset()
        return [*results, *(stream(frame) for frame in FRAMES[3:])]


def wanted(bundle: Bundle, policy: Policy) -> list[Result]:
    """What ONNX Runtime says of the same."""
    with closing(OrtCpuBackend(bundle, threads=1)) as backend:
        return play(backend, bundle, "ort-cpu", policy)


def assert_equal(found: list[Result], expected: list[Result]) -> None:
    """Bit for bit."""
    for a, b in zip(found, expected, strict=True):
        assert (a.warm, a.reason, a.iterations, a.residual) == (
            b.warm, b.reason, b.iterations, b.residual,
        )  # fmt: skip
        assert np.array_equal(a.output, b.output)
        assert a.confidence is not None
        assert b.confidence is not None
        assert np.array_equal(a.confidence, b.confidence)
