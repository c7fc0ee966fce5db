"""What ONNX Runtime holds for a process: one arena, however many graphs and models come and go."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from mdeq_runtime import FixedIterations, Model, SessionSettings
from mdeq_runtime.memory import resident_bytes, settled_objects

CALM = SessionSettings(FixedIterations(2, cold=4), restart_above=1e9, reset_on_cut=False)

OPEN_AND_CLOSE = """
import sys
from pathlib import Path
import numpy as np
from mdeq_runtime import FixedIterations, Model, SessionSettings
from mdeq_runtime.memory import resident_bytes

frame = np.zeros((64, 96, 3), np.uint8)
for turn in range(30):
    with Model(Path(sys.argv[1]), SessionSettings(FixedIterations(2, cold=1)), threads=1) as model:
        with model.session() as session:  # loads two graphs
            for _ in range(3):
                session(frame)
    if turn == 4:
        settled = resident_bytes()
print(resident_bytes() - settled)
"""


@pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only")
def test_models_that_come_and_go_leave_nothing_behind(segmenter_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_CLOSE, str(segmenter_bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights = (segmenter_bundle / "graphs" / "ort-cpu" / "weights-fp32.bin").stat().st_size
    # 25 models of two graphs each: had they kept their weights, it would be 50 times these
    assert int(done.stdout) < 20 * weights


def test_graphs_of_one_arena_may_run_at_the_same_time(segmenter_bundle: Path) -> None:
    """Two streams in two threads, many frames each: what each alone would answer."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (12, 64, 96, 3), dtype=np.uint8) for _ in range(2)]
    found: dict[int, list[tuple[float, bytes]]] = {0: [], 1: []}
    with Model(segmenter_bundle, CALM, threads=1) as model:

        def answer(stream: int) -> list[tuple[float, bytes]]:
            results = model.stream(iter(clips[stream]))
            return [(result.residual, result.output.tobytes()) for result in results]

        alone = [answer(0), answer(1)]
        threads = [
            threading.Thread(target=lambda i: found[i].extend(answer(i)), args=(i,)) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [found[0], found[1]] == alone


def test_what_is_there_before_frames_is_no_business_of_the_garbage_collector() -> None:
    """Looking at it takes a tenth of a second, and would make a frame late."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    def is_looked_at(thing: object) -> bool:
        return any(one is thing for one in gc.get_objects())

    early = Cycle()
    with settled_objects():
        assert not is_looked_at(early)
        late = Cycle()
        assert is_looked_at(late)
        gone = weakref.ref(late)
        del late
        gc.collect()
        assert gone() is None, "cycles that come later are found"
    assert is_looked_at(early), "everything is as before"
    assert gc.get_freeze_count() == 0
