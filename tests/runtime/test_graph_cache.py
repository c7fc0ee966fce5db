"""Optimised graphs are kept, used where they hold, and made again where they do not."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from mdeq_runtime import Model, SessionSettings, UntilTolerance
from mdeq_runtime.backends import graph_cache

SETTINGS = SessionSettings(UntilTolerance(1e-6, max_iterations=3))


@pytest.fixture
def frame() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def answer(bundle: Path, cache: Path | None, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with Model(bundle, SETTINGS, threads=1, cache=cache) as model:
        return model(frame).to_mask()


def entries(cache: Path) -> dict[Path, int]:
    """Every entry and when its graph was written."""
    return {path: (path / "graph.onnx").stat().st_mtime_ns for path in cache.iterdir()}


def test_a_cached_graph_answers_as_the_bundle_s_own(
    segmenter_bundle: Path, tmp_path: Path, frame: NDArray[np.uint8]
) -> None:
    cache = tmp_path / "new" / "cache"
    wanted = answer(segmenter_bundle, None, frame)
    first = answer(segmenter_bundle, cache, frame)
    made = entries(cache)
    again = answer(segmenter_bundle, cache, frame)
    assert len(made) == 3, "inject, advance and readout"
    assert entries(cache) == made, "nothing was made twice"
    assert np.array_equal(first, wanted)
    assert np.array_equal(again, wanted)


@pytest.mark.parametrize("name", ["graph.onnx", "graph.bin", "made.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_an_altered_entry_is_made_again(
    segmenter_bundle: Path, tmp_path: Path, frame: NDArray[np.uint8], name: str, how: str
) -> None:
    wanted = answer(segmenter_bundle, tmp_path, frame)
    for entry in tmp_path.iterdir():
        path = entry / name
        raw = bytearray(path.read_bytes())
        if how == "remove":
            path.unlink()
        elif raw:
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw if how == "flip" else raw[: len(raw) // 2])
    assert np.array_equal(answer(segmenter_bundle, tmp_path, frame), wanted)
    cache = graph_cache.GraphCache(tmp_path, ort, ort.SessionOptions)
    assert len(entries(tmp_path)) == 3
    assert all(cache.is_whole(entry) for entry in tmp_path.iterdir())


def test_another_version_or_processor_has_entries_of_its_own(
    segmenter_bundle: Path,
    tmp_path: Path,
    frame: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ort.__version__ in graph_cache.fingerprint(ort)
    answer(segmenter_bundle, tmp_path, frame)
    other = tmp_path.parent / f"{tmp_path.name}-cpuinfo"
    other.write_text("model name : another\nflags : fpu\n")
    monkeypatch.setattr(graph_cache, "CPUINFO", other)
    answer(segmenter_bundle, tmp_path, frame)
    assert len(entries(tmp_path)) == 6


def test_without_a_place_to_write_it_goes_on_and_says_why(
    segmenter_bundle: Path,
    tmp_path: Path,
    frame: NDArray[np.uint8],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "a file"
    file.write_text("and no folder")
    with caplog.at_level(logging.WARNING):
        found = answer(segmenter_bundle, file, frame)
    assert np.array_equal(found, answer(segmenter_bundle, None, frame))
    assert "cannot be used" in caplog.text


KILLED = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from mdeq_runtime import Model
def watch():
    while not any(Path(sys.argv[2]).glob(".making-*/graph.onnx")):
        pass
    os.kill(os.getpid(), 9)
threading.Thread(target=watch, daemon=True).start()
with Model(Path(sys.argv[1]), cache=sys.argv[2]) as model:
    model(np.zeros((64, 96, 3), np.uint8))
    time.sleep(5)
"""


def test_a_killed_run_leaves_no_entry_that_would_be_believed(
    segmenter_bundle: Path, tmp_path: Path, frame: NDArray[np.uint8]
) -> None:
    program = [sys.executable, "-c", KILLED, str(segmenter_bundle), str(tmp_path)]
    assert subprocess.run(program, check=False, timeout=120).returncode == -9
    assert list(tmp_path.glob(".making-*"))
    wanted = answer(segmenter_bundle, None, frame)
    assert np.array_equal(answer(segmenter_bundle, tmp_path, frame), wanted)
    assert not list(tmp_path.glob(".making-*")), "what it left is swept"


def test_an_entry_of_another_device_is_made_again(
    segmenter_bundle: Path,
    tmp_path: Path,
    frame: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its record says what ours would, but for the tag."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    cache = tmp_path / "cache"
    answer(segmenter_bundle, cache, frame)
    made = entries(cache)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    answer(segmenter_bundle, cache, frame)
    again = entries(cache)
    assert made.keys() == again.keys()
    assert all(made[path] != again[path] for path in made)


def test_an_entry_holds_for_no_other_graph(
    segmenter_bundle: Path, tmp_path: Path, frame: NDArray[np.uint8]
) -> None:
    answer(segmenter_bundle, tmp_path, frame)
    first, second = sorted(tmp_path.iterdir())[:2]
    shutil.rmtree(first)
    shutil.copytree(second, first)
    cache = graph_cache.GraphCache(tmp_path, ort, ort.SessionOptions)
    assert cache.is_whole(second)
    assert not cache.is_whole(first)


def test_without_a_key_it_goes_on_without(
    segmenter_bundle: Path,
    tmp_path: Path,
    frame: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    found = answer(segmenter_bundle, tmp_path / "cache", frame)
    assert np.array_equal(found, answer(segmenter_bundle, None, frame))
    assert "the key of this device" in caplog.text
