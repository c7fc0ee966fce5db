"""A memory limit: what does not fit is refused with reasons, what fits is kept, what grows sheds.

What a process takes is measured in processes of their own: this one holds much else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from streams import CALM, assert_same, blobs

from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import BundleError, ConfigError, MemoryLimitError
from mdeq_runtime import FixedIterations, Model, SessionSettings
from mdeq_runtime import budget as budget_module
from mdeq_runtime.planner import MIB, parse_bytes

SAMPLE = Path(__file__).parents[2] / "samples/bundles/camvid-nano.mdeq"
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
from mdeq_runtime.streams import answer_streams
bundle, limit, what, cache = sys.argv[1:5]
policy = UntilTolerance(1e-9, max_iterations=4) if what == "parts" else FixedIterations(int(what))
settings = SessionSettings(policy, reset_on_cut=False, restart_above=1e9)
with Model(Path(bundle), settings, cache=cache or None, memory_limit=limit) as model:
    with model.session() as one, model.session() as two:
        shape = (*model.manifest.input.size, 3)
        for seed in range(3):
            image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
            one(image), two(image)
        report = model.memory()
print(json.dumps([report.predicted, report.measured, list(report.shed)]))
"""
GROWS = """
import logging, sys
from pathlib import Path
import numpy as np
from mdeq_runtime import FixedIterations, Model, SessionSettings
from edge_mdeq.errors import MemoryLimitError
logging.basicConfig(format="%(message)s")
settings = SessionSettings(FixedIterations(8), reset_on_cut=False, restart_above=1e9)
image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
with Model(Path(sys.argv[1]), settings, memory_limit="400MiB") as model:
    with model.session() as session:
        first = session(image)
        session.reset()
        ballast = np.ones(400 * 2**20, np.uint8)  # somebody else's, in the same process
        again = session(image)
        print("same", float((first.output == again.output).mean()) > 0.999, again.iterations)
        for _ in range(5):
            try:
                session(image)
            except MemoryLimitError as error:
                print("refused", error)
                break
        print("shed", model.memory().shed)
        del ballast
        print("goes on", session(image).iterations)
"""


def child(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def ran(limit: str | int, what: str, cache: str = "") -> tuple[int, int, list[str]]:
    """Predicted and measured bytes, and what was shed, of two streams on the sample bundle."""
    predicted, measured, shed = json.loads(child(RUN, SAMPLE, limit, what, cache))
    return predicted, measured, shed


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 256 * MIB),
        ("1.5 GB", 1_500_000_000),
        ("64kib", 65536),
        (123456, 123456),
    ],
)
def test_limits_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-5MiB", "0", "5 parsecs", "1g", "1e3MB", -7])
def test_a_limit_that_makes_no_sense_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match=r"256MiB, 1\.5GB or a number"):
        Model(SAMPLE, memory_limit=text)


@pytest.mark.parametrize("what", ["8", "1", "parts"])
def test_the_peak_is_what_was_predicted(what: str) -> None:
    predicted, measured, shed = ran("4GiB", what)
    assert 0.75 * predicted <= measured <= predicted
    assert shed == []


def test_a_graph_cache_is_counted_when_it_is_there(tmp_path: Path) -> None:
    for _ in range(2):  # made by the first, used by the second
        predicted, measured, _ = ran("4GiB", "parts", str(tmp_path / "cache"))
        assert 0.75 * predicted <= measured <= predicted


def test_what_was_predicted_is_enough_and_less_is_refused_with_a_table() -> None:
    predicted, _, _ = ran("4GiB", "8")
    again, measured, shed = ran(predicted + MIB // 2, "8")  # a base varies by some pages
    assert measured <= again <= predicted + MIB // 2
    assert shed == []
    command = [sys.executable, "-c", RUN, str(SAMPLE), str(predicted // 2), "8", ""]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "MemoryLimitError" in refused.stderr
    (least,) = re.findall(r"the least it needs is (\d+) MiB", refused.stderr)
    table = refused.stderr[refused.stderr.index("form") :].splitlines()
    totals = {line.split()[0]: float(line.split()[-1]) for line in table[1:3]}
    assert set(totals) == {"graph", "parts"}
    assert float(least) == pytest.approx(min(totals.values()), abs=1)
    assert predicted / 2 / MIB < float(least) <= predicted / MIB + 1


def test_nothing_is_loaded_before_it_is_known_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mdeq_runtime.backends.ort_cpu.OrtCpuBackend.open",
        lambda *args: pytest.fail("a graph was loaded"),
    )
    with pytest.raises(MemoryLimitError):
        Model(SAMPLE, memory_limit="1MiB")


def test_a_second_stream_may_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's own part is small; 0.9 MB on the sample bundle."""
    monkeypatch.setattr(budget_module, "resident_bytes", lambda: 90_000_000)
    with Model(SAMPLE, CALM, memory_limit="4GiB") as model:
        budget = model.budget
        assert budget is not None
        with model.session() as first:
            budget.limit = budget.predicted + 500_000
            with pytest.raises(MemoryLimitError):
                model.session()
            assert first(blobs(0)).iterations
        assert model.session()(blobs(0)).iterations  # the first one has gone


def test_the_form_that_fits_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight evaluations as a graph of eight, and as one that is repeated."""
    monkeypatch.setattr(budget_module, "resident_bytes", lambda: 90_000_000)
    settings = SessionSettings(FixedIterations(8), restart_above=1e9, reset_on_cut=False)
    with (
        Model(SAMPLE, settings, memory_limit="8GiB") as free,
        Model(SAMPLE, settings, memory_limit="4GiB") as tight,
    ):
        assert tight.budget is not None
        whole = free.session()
        tight.budget.limit = least_of(tight)
        parts = tight.session()
        assert type(parts.solver).__name__ == "FixedParts"
        assert type(whole.solver).__name__ == "Fixed"
        for seed in (1, 2, 3):
            found, expected = parts(blobs(seed)), whole(blobs(seed))
            assert_same(found, expected)
            assert found.iterations == expected.iterations == 8
            assert found.warm == expected.warm == (seed > 1)
            assert found.cold == expected.cold


def least_of(model: Model) -> int:
    """Bytes of the smaller of a model's two forms."""
    from mdeq_runtime.planner import choices

    settings, profile = model.settings, model.bundle.profile("ort-cpu")
    found = choices(
        model.manifest,
        profile,
        model.backend.footprint,
        settings.policy,
        settings.carry,
        base=90_000_000,
    )
    by_form = {choice.form: choice.need.total for choice in found}
    assert by_form["parts"] < by_form["graph"]
    return by_form["parts"]


def test_a_process_that_outgrows_its_limit_sheds_before_it_fails() -> None:
    said = child(GROWS, SAMPLE)
    assert "same True 8" in said  # of smaller rungs, the same answer
    assert "gave up the rung of 8 evaluations for that of 4" in said
    assert "refused the process holds" in said
    assert "nothing is left that could be given up" in said
    assert "goes on 8" in said  # once the others have let go


def test_a_backend_keeps_to_its_share() -> None:
    """Whatever was predicted: ONNX Runtime's arena is told what is left of the limit."""
    code = """
import sys
from pathlib import Path
from edge_mdeq.bundle import open_bundle
from edge_mdeq.errors import MemoryLimitError
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.memory import resident_bytes
bundle = open_bundle(Path(sys.argv[1]))
backend = OrtCpuBackend(bundle)
backend.limit = resident_bytes() + 4 * 2**20
rung = bundle.profile("ort-cpu").rungs[-1]
try:
    backend.load(rung.graph)
    backend.run(rung, 0, backend.new_state())
except MemoryLimitError as error:
    print("refused", error)
"""
    assert "refused" in child(code, SAMPLE)


def test_an_older_bundle_says_why_it_cannot_be_limited(tmp_path: Path) -> None:
    old = tmp_path / "old.mdeq"
    shutil.copytree(SAMPLE, old)
    manifest = json.loads((old / "manifest.json").read_text())
    for profile in manifest["profiles"].values():
        del profile["costs"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(old).profile("ort-cpu").costs == {}
    with pytest.raises(BundleError, match="export it again"):
        Model(old, memory_limit="4GiB")
    with Model(old, CALM) as model:
        assert model(blobs(0)).iterations


def test_sources_and_sinks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdeq_runtime.sinks import open_sink
    from mdeq_runtime.sources import open_source

    monkeypatch.setattr(budget_module, "resident_bytes", lambda: 90_000_000)
    clip = tmp_path / "wide.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 25, (1280, 720))
    writer.write(np.zeros((720, 1280, 3), np.uint8))
    writer.release()
    with Model(SAMPLE, CALM, memory_limit="4GiB") as model, open_source(str(clip)) as source:
        budget = model.budget
        assert budget is not None
        bare = budget.plan(model.manifest, model.bundle.profile("ort-cpu"), CALM.policy, True)
        model.expect(source, [open_sink(tmp_path / "out.mp4", fps=25)])
        full = budget.plan(model.manifest, model.bundle.profile("ort-cpu"), CALM.policy, True)
        frame = 720 * 1280 * 3
        assert 6 * frame < full.need.frames - bare.need.frames < 24 * frame + 20_000_000
        budget.limit = bare.need.total
        with pytest.raises(MemoryLimitError):
            model.expect(source)


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group whose processes get no more than ``limit`` bytes, whatever they ask for."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root = Path("/sys/fs/cgroup") if unified else Path("/sys/fs/cgroup/memory")
    group = root / f"edge-mdeq-test-{os.getpid()}"
    try:
        group.mkdir()
        name = "memory.max" if unified else "memory.limit_in_bytes"
        (group / name).write_text(str(limit))
        if unified:
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group for memory can be made here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


@pytest.mark.parametrize("what", ["8", "parts"])
def test_an_accepted_limit_is_kept_when_the_kernel_enforces_it(what: str) -> None:
    predicted, _, _ = ran("4GiB", what)
    limit = predicted + MIB // 2
    with memory_group(limit) as processes:
        command = ["sh", "-c", f'echo $$ > {processes} && exec "$@"', "sh", sys.executable, "-c"]
        arguments: Sequence[str] = [RUN, str(SAMPLE), str(limit), what, ""]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[2] == []
        half: Sequence[str] = [RUN.replace("memory_limit=limit", ""), *arguments[1:]]
    with memory_group(16 * MIB) as processes:  # the group does enforce it
        command[2] = f'echo $$ > {processes} && exec "$@"'
        assert subprocess.run([*command, *half], capture_output=True).returncode == -9


def test_the_command_refuses_before_it_writes(tmp_path: Path) -> None:
    picture, kept = tmp_path / "p.png", tmp_path / "out.jsonl"
    cv2.imwrite(str(picture), blobs(0, (192, 256)))
    kept.write_text("precious\n")
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(SAMPLE), str(picture), str(kept)]
    done = subprocess.run([*command, "--memory-limit", "64MiB"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not fit into 64 MiB" in done.stderr
    assert kept.read_text() == "precious\n"
    done = subprocess.run([*command, "--memory-limit", "512MiB"], capture_output=True, text=True)
    assert done.returncode == 0
    (found,) = re.findall(r"peak resident memory (\d+) MB; (\d+) predicted, limit 537", done.stdout)
    assert int(found[0]) <= int(found[1])
