"""What a process pays for importing: each case in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "cv2", "safetensors", "kornia")

PROBE = """
import json, sys, time
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
print(json.dumps([sorted(set(sys.modules) & set({heavy!r})), seconds]))
"""

HELP = """
import contextlib, io
import edge_mdeq.cli
sys.argv = ["edge-mdeq", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
    edge_mdeq.cli.main()
assert "export" in text.getvalue()
"""


def probe(statement: str) -> tuple[list[str], float]:
    """The heavy modules that ``statement`` loaded, and the seconds that it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement, heavy=HEAVY)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded, seconds = json.loads(done.stdout)
    return loaded, seconds


@pytest.mark.parametrize(
    "statement",
    [
        "import edge_mdeq",
        "import mdeq_runtime",
        "import edge_mdeq.bundle, edge_mdeq.config, edge_mdeq.fitting",
        "import mdeq_runtime.pipeline, mdeq_runtime.sources, mdeq_runtime.sinks",
        HELP,
    ],
    ids=["edge_mdeq", "mdeq_runtime", "contracts", "pipeline", "help"],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert probe(statement)[0] == []


def test_the_probe_sees_a_heavy_import() -> None:
    assert probe("import cv2")[0] == ["cv2"]


def test_running_a_bundle_never_imports_torch(segmenter_bundle: object) -> None:
    statement = (
        "import numpy, edge_mdeq\n"
        f"with edge_mdeq.load({str(segmenter_bundle)!r}) as model:\n"
        "    model(numpy.zeros((50, 60, 3), numpy.uint8))"
    )
    assert probe(statement)[0] == ["cv2", "onnxruntime"]


def test_importing_edge_mdeq_is_quick() -> None:
    assert min(probe("import edge_mdeq")[1] for _ in range(5)) < 0.3


def test_exported_names_exist_and_are_no_more_than_meant() -> None:
    import edge_mdeq
    import mdeq_runtime

    assert set(edge_mdeq.__all__) == {"__version__", "export", "load", "val"}
    policies = {"FixedIterations", "UntilTolerance", "UntilDeadline"}
    solving = {"Frame", "Model", "Result", "Session", "SessionSettings"}
    assert set(mdeq_runtime.__all__) == solving | policies
    for package in (edge_mdeq, mdeq_runtime):
        assert all(hasattr(package, name) for name in package.__all__)
