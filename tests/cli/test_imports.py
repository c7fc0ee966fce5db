"""What a process pays for importing: each case in an interpreter of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.clock

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


GONE = """
import contextlib, io
import edge_mdeq.cli
sys.argv = ["edge-mdeq", "{verb}", "gone.safetensors", {arguments}]
with contextlib.redirect_stderr(io.StringIO()) as text, contextlib.suppress(SystemExit):
    edge_mdeq.cli.main()
assert "gone.safetensors does not exist" in text.getvalue()
"""


def probe(statement: str) -> tuple[list[str], float]:
    """The heavy modules that ``statement`` loaded, and the seconds that it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement, heavy=HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
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


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("export", '"-o", "x.mdeq"'), ("tune", '"--data", ".", "--iterations", "2", "-o", "x"')],
)
def test_weights_that_are_not_there_are_missed_at_once(verb: str, arguments: str) -> None:
    pytest.importorskip("torch", reason="the verb needs it")
    assert probe(GONE.format(verb=verb, arguments=arguments))[0] == []


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


RUNS = """
import sys, time
from pathlib import Path
import numpy as np
from mdeq_runtime import Model
with Model(Path(sys.argv[1])) as model:
    model(np.zeros((*model.manifest.input.size, 3), np.uint8))
time.sleep(40)  # reports are sent now and then
"""


def sockets(trace: Path, **environment: str) -> int:
    """How many sockets a process opens that answers one frame and then waits."""
    bundle = Path(__file__).parents[2] / "samples/bundles/camvid-nano.mdeq"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=socket", sys.executable, "-c", RUNS]
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([*command, str(bundle)], env=kept | environment, check=True, capture_output=True)
    return trace.read_text().count("socket(")


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """The runtime opens no connection, not even to ask for an address."""
    if not sockets(tmp_path / "trace", ORT_DISABLE_TELEMETRY="0"):
        pytest.skip("this ONNX Runtime does not report, even where it may")
    assert sockets(tmp_path / "trace") == 0


def test_whoever_wants_to_report_still_can() -> None:
    code = "import os, mdeq_runtime.backends; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in ((None, "1"), ("0", "0")):
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        environment |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == expected
