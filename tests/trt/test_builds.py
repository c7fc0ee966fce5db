"""Builds by the real compiler of TensorRT for RTX, in a child that may fail in any way."""

from __future__ import annotations

import errno
import os
import platform
import queue
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import onnx
import pytest

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.errors import BundleError, ConfigError, EngineError
from mdeq_runtime.policies import FixedIterations, UntilTolerance
from mdeq_runtime.tensorrt.child import Event, Job
from mdeq_runtime.tensorrt.engines import EngineStore
from mdeq_runtime.tensorrt.identity import identify
from mdeq_runtime.tensorrt.settings import BuildSettings, needed
from mdeq_runtime.tensorrt.versions import find_release, installed
from mdeq_runtime.tensorrt.workshop import CHILD, Workshop, child, read

pytestmark = pytest.mark.skipif(
    not installed(("tensorrt_rtx",)),
    reason=f"no TensorRT for RTX is installed; there is none for {platform.machine()}"
    if platform.machine() != "x86_64"
    else "pip install 'edge-mdeq[tensorrt-rtx]'",
)
SETTINGS = BuildSettings(capabilities=("SM86",))
GRAPH = "graphs/ort-cpu/advance-k1.onnx"


@pytest.fixture
def store(plain: Bundle, tmp_path: Path) -> EngineStore:
    bundle = open_bundle(Path(shutil.copytree(plain.path, tmp_path / "own.mdeq")))
    identity = identify(find_release(True), bundle.profile("tensorrt-rtx"), SETTINGS)
    return EngineStore(bundle, "tensorrt-rtx", identity)


def workshop(
    store: EngineStore,
    report: Callable[[str, Event], None] = lambda graph, event: None,
    **settings: int,
) -> Workshop:
    return Workshop(store, True, SETTINGS, report=report, **settings)  # type: ignore[arg-type]


def children() -> list[int]:
    """Builds that run, of all the processes that this one has started."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # threads end, and processes too
            for pid in task.read_text().split():
                if CHILD in Path("/proc", pid, "cmdline").read_text():
                    found.append(int(pid))
    return found


def nothing_half_done(store: EngineStore) -> bool:
    return not list(store.folder.glob(".*"))


def test_a_build_leaves_an_engine_and_what_it_is(store: EngineStore) -> None:
    heard: list[Event] = []
    record = workshop(store, lambda graph, event: heard.append(event)).build(GRAPH)
    path = store.find(GRAPH)
    assert path.read_bytes()[:4] == b"vtrt"  # a plan of TensorRT for RTX, and nothing around it
    assert record.bytes == path.stat().st_size > 100_000
    assert record.identity.capability == "8.6"
    assert record.measured["layers"] > 50
    assert 100e6 < record.measured["peak_bytes"] < 2e9
    shares = [event.done for event in heard if event.kind == "progress"]
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert nothing_half_done(store)
    store.bundle.verify()


def test_what_a_session_needs_is_built_smallest_first(store: EngineStore) -> None:
    graphs = needed(store.profile, [FixedIterations(2), UntilTolerance()])
    names = [Path(graph).stem for graph in graphs]
    assert names == ["inject", "readout", "advance-k1", "solve-k2"]


def test_a_build_beyond_its_memory_is_stopped_and_the_engine_before_it_stays(
    store: EngineStore,
) -> None:
    workshop(store).build(GRAPH)
    before = store.find(GRAPH).read_bytes()
    with pytest.raises(EngineError, match=r"its limit is 120 MiB.*was stopped.*--iterations 1"):
        workshop(store, limit=120 * 2**20).build(GRAPH)
    assert store.find(GRAPH).read_bytes() == before
    assert nothing_half_done(store)
    assert not children()


def test_so_is_one_that_leaves_the_machine_too_little(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdeq_runtime.tensorrt.workshop.available_bytes", lambda: 30 * 2**20)
    with pytest.raises(EngineError, match="left the machine 30 MiB"):
        workshop(store).build(GRAPH)
    assert nothing_half_done(store)


def test_a_killed_build_is_told_from_a_failed_one(store: EngineStore) -> None:
    def kill(graph: str, event: Event) -> None:
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(EngineError, match=r"was killed, most likely.*memory ran out.*smaller rung"):
        workshop(store, kill).build(GRAPH)
    assert not store.has(GRAPH)
    assert nothing_half_done(store)


def test_an_interrupted_build_leaves_nothing_and_no_process(store: EngineStore) -> None:
    def interrupt(graph: str, event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop(store, interrupt).build(GRAPH)
    assert not store.has(GRAPH)
    assert nothing_half_done(store)
    assert not children()


def test_an_altered_bundle_is_not_built_from(store: EngineStore) -> None:
    path = store.bundle.path / GRAPH
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        workshop(store).build(GRAPH)


def do(job: Job) -> Event:
    """A job's last word."""
    last = None
    with child(job) as (process, events):
        while (event := events.get()) is not None:
            last = event
        process.wait()
    assert last is not None
    return last


def test_a_full_disk_is_named(store: EngineStore) -> None:
    graph = str(store.bundle.file(GRAPH))
    job = Job(graph, "/dev/full", str(store.folder / "layers"), None, True, SETTINGS)
    last = do(job)
    assert (last.kind, last.severity) == ("error", "EngineError")
    assert "No space left on device" in last.text
    assert "--cache" in last.text


def test_so_is_one_on_which_only_the_engine_fits(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mdeq_runtime.tensorrt.records.write_atomic", full)
    with pytest.raises(EngineError, match=r"could not be written: No space left"):
        workshop(store).build(GRAPH)
    assert not store.has(GRAPH)


def test_a_line_of_a_childs_that_makes_no_sense_is_passed_over() -> None:
    heard: queue.Queue[Event | None] = queue.Queue()
    lines = [b'{"kind": "sa\n', msgspec.json.encode(Event("built")) + b"\n"]
    read(iter(lines), heard)  # type: ignore[arg-type]
    assert [heard.get_nowait(), heard.get_nowait()] == [Event("built"), None]


def test_the_parser_names_the_node_and_operator_that_it_does_not_know(tmp_path: Path) -> None:
    helper = onnx.helper
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3))
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 3))
    node = helper.make_node("Unheard", ["x"], ["y"], name="odd one", domain="")
    graph = helper.make_graph([node], "g", [image], [out])
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(path))
    job = Job(str(path), str(tmp_path / "e"), str(tmp_path / "l"), None, True, SETTINGS)
    last = do(job)
    assert last.severity == "EngineError"
    assert "'odd one' (Unheard)" in last.text
    assert "--target tensorrt-rtx" in last.text
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (BuildSettings(capabilities=("SM87",)), "no 'SM87'"),
        (BuildSettings(capabilities=("SM86",), version_compatible=True), "no version-compatible"),
        (BuildSettings(capabilities=("SM86",), half=True), "precision lies in the graph"),
        (BuildSettings(capabilities=("SM86",), batch=(1, 2, 4)), "fixed batch"),
    ],
)
def test_settings_that_do_not_exist_are_the_users_error(
    store: EngineStore, settings: BuildSettings, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        Workshop(store, True, settings).build(GRAPH)
    assert nothing_half_done(store)


def test_weights_may_be_streamed(store: EngineStore) -> None:
    settings = BuildSettings(capabilities=("SM86", "SM89"), stream_weights=True, level=0)
    record = Workshop(store, True, settings).build(GRAPH)
    assert record.settings["stream_weights"] is True
