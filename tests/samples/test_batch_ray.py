"""samples/batch_ray.py: with two workers, killed and resumed; and its parts without Ray."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edge_mdeq
from edge_mdeq.errors import DataError, SinkError
from mdeq_runtime import SessionSettings
from mdeq_runtime.sinks.jsonl import describe

SAMPLE = Path(__file__).parents[2] / "samples" / "batch_ray.py"
SIZE = (64, 96)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'edge-mdeq[batch]'"
)


def pan(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a camera that goes to and fro before a coloured wall."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 40, 3), dtype=np.uint8)
    wide = np.asarray(cv2.resize(small, (640, SIZE[0])), np.uint8)
    for k in range(count):
        shift = abs((3 * k) % 1000 - 500)
        yield np.ascontiguousarray(wide[:, shift : shift + SIZE[1]])


def write_clip(path: Path, frames: int, seed: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    for frame in pan(frames, seed):
        writer.write(frame)
    writer.release()
    return path


def alone(bundle: Path, source: Path) -> list[dict[str, Any]]:
    """What one process answers, frame by frame; times left out."""
    with edge_mdeq.load(bundle, threads=1) as model:
        entries = [describe(result, model.labels) for result in model.stream(str(source))]
    return [{k: v for k, v in entry.items() if k != "times"} for entry in entries]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["item"]: row for row in csv.DictReader(file)}


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SAMPLE), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def call(*arguments: str | Path, **options: Any) -> tuple[int, str, str]:
    process = start(*arguments, **options)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


# --- with Ray: one batch, killed twice


@dataclass(frozen=True)
class Story:
    """A batch whose first run is killed, and whose second one loses a worker."""

    bundle: Path
    source: Path
    out: Path
    partial: set[str]  # items that its first run had begun and not finished
    finished: dict[str, int]  # items that it had finished, and when
    survivors: set[int]  # its workers that outlived it by half a minute
    victim: str  # the item whose worker was killed in the second run
    workers: set[int]  # that were seen at work after that
    status: int
    printed: str
    errors: str


def in_the_making(out: Path) -> dict[str, int]:
    """Items that are being written, and the processes that write them."""
    parts = [path.name.removeprefix(".").split(".jsonl.") for path in out.glob(".*.jsonl.*.tmp")]
    return {name: int(rest.split(".")[0]) for name, rest in parts}


def watch(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    """Wait for something to be so, while the process runs."""
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def running(pid: int) -> bool:
    """Whether a process is more than a zombie that nobody has asked for."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture(scope="module")
def story(segmenter_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    source = tmp_path_factory.mktemp("in")
    out = tmp_path_factory.mktemp("batch") / "out"
    for k in range(6):
        write_clip(source / f"drive{k}.avi", 220 - 20 * k, seed=k)
    (source / "broken.mp4").write_bytes(b"this is no video")
    (source / "notes.txt").write_text("not an item")
    (source / "walk").mkdir()
    for k, frame in enumerate(pan(12, seed=7)):
        cv2.imwrite(str(source / "walk" / f"{k}.png"), frame)
    cv2.imwrite(str(source / "photo.png"), next(pan(1, seed=8)))
    arguments = (segmenter_bundle, source, out, "--workers", "2")
    # A killed run leaves Ray's files, here where they are removed; pytest's paths are too long.
    short = tempfile.TemporaryDirectory(prefix="m-", ignore_cleanup_errors=True)
    environment = {**os.environ, "TMPDIR": short.name}

    first = start(*arguments, env=environment)
    watch(first, lambda: bool(list(out.glob("*.jsonl")) and in_the_making(out)))
    first.kill()
    workers = set(in_the_making(out).values())
    first.communicate()
    deadline = time.monotonic() + 30
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    partial = set(in_the_making(out))
    finished = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}

    second = start(*arguments, env=environment)
    seen: set[int] = set()
    killed: list[tuple[str, int]] = []

    def killed_at_work() -> bool:
        """Kill a worker, but only one that is caught in the middle of an item."""
        for name, pid in in_the_making(out).items():
            if pid not in workers:
                os.kill(pid, signal.SIGSTOP)
                if in_the_making(out).get(name) == pid:
                    os.kill(pid, signal.SIGKILL)
                    killed.append((name, pid))
                    return True
                os.kill(pid, signal.SIGCONT)
        return False

    watch(second, killed_at_work)
    while second.poll() is None:
        seen.update(in_the_making(out).values())
        time.sleep(0.002)
    printed, errors = second.communicate()
    short.cleanup()
    victim, victims_worker = killed[0]
    return Story(
        bundle=segmenter_bundle,
        source=source,
        out=out,
        partial=partial,
        finished=finished,
        survivors={pid for pid in workers if running(pid)},
        victim=victim,
        workers=seen - {victims_worker},
        status=second.returncode,
        printed=printed,
        errors=errors,
    )


@needs_ray
def test_every_item_ends_as_one_process_alone_would_have_it(story: Story) -> None:
    names = [*(f"drive{k}.avi" for k in range(6)), "walk", "photo.png"]
    assert sorted(path.stem for path in story.out.glob("*.jsonl")) == sorted(names)
    for name in names:
        assert read(story.out / f"{name}.jsonl") == alone(story.bundle, story.source / name), name


@needs_ray
def test_a_killed_run_leaves_whole_results_and_no_worker(story: Story) -> None:
    assert 0 < len(story.finished) < 8, "it was to be killed in the middle"
    assert not story.finished.keys() & story.partial
    assert not story.survivors


@needs_ray
def test_the_next_run_does_only_what_was_not_finished(story: Story) -> None:
    for name, when in story.finished.items():
        assert (story.out / f"{name}.jsonl").stat().st_mtime_ns == when
    before = len(story.finished)
    assert f"8 of 9 items done, {before} of them before; 1 failed" in story.printed


@needs_ray
def test_a_killed_worker_is_replaced_and_its_item_done_again(story: Story) -> None:
    assert f"{story.victim}: its worker died, it was done again" in story.errors
    assert story.victim not in story.finished
    # one that went on, and a replacement, unless the former had done all before that was there
    assert 1 <= len(story.workers) <= 2
    assert sorted(path.name for path in story.out.iterdir() if path.suffix != ".jsonl") == [
        "batch.json",
        "summary.csv",
    ]


@needs_ray
def test_a_video_that_cannot_be_read_fails_alone(story: Story) -> None:
    assert story.status == 1
    assert "Traceback" not in story.errors
    assert "broken.mp4: failed: " in story.errors
    assert "give the same command again" in story.printed
    rows = summary(story.out)
    assert rows.pop("broken.mp4").items() >= {"status": "failed", "frames": "0"}.items()
    assert "cannot be opened as a video" in summary(story.out)["broken.mp4"]["note"]
    for name, row in rows.items():
        lines = read(story.out / f"{name}.jsonl")
        assert row["status"] == "done"
        assert int(row["frames"]) == len(lines)
        for column, field in (("iterations",) * 2, ("residual",) * 2, ("warm",) * 2):
            mean = sum(line[field] for line in lines) / len(lines)
            assert float(row[column]) == pytest.approx(mean, abs=6e-5)


# --- its parts, without Ray


def test_results_newer_than_their_source_count_and_older_ones_do_not(tmp_path: Path) -> None:
    from batch_ray import Item, finished

    clip, results = write_clip(tmp_path / "a.avi", 3), tmp_path / "a.avi.jsonl"
    item = Item("a.avi", str(clip))
    assert not finished(item, tmp_path)
    results.write_text("")
    os.utime(clip, ns=(10**18, 10**18))
    assert finished(item, tmp_path)
    later = results.stat().st_mtime_ns + 10**9
    os.utime(clip, ns=(later, later))
    assert not finished(item, tmp_path), "the recording was copied anew"
    clip.unlink()
    assert finished(item, tmp_path), "what was recorded is gone, what was found stays"


def test_segments_are_the_video_in_parts_that_start_cold(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    from batch_ray import Worker, list_items

    (tmp_path / "in").mkdir()
    clip = write_clip(tmp_path / "in" / "a.avi", 25)
    cv2.imwrite(str(tmp_path / "in" / "photo.png"), next(pan(1, seed=8)))
    items = list_items(tmp_path / "in", "video", 1.0)  # of ten frames each
    names = ["a.avi/00000000", "a.avi/00000010", "a.avi/00000020", "photo.png"]
    assert [item.name for item in items] == names
    worker = Worker(segmenter_bundle, SessionSettings(), 1, tmp_path / "out")
    assert [worker.answer(item).failure for item in items] == [""] * 4
    parts = [read(tmp_path / "out" / f"{name}.jsonl") for name in names[:3]]
    assert [len(part) for part in parts] == [10, 10, 5]
    assert [line["index"] for part in parts for line in part] == list(range(25))
    assert [part[0]["reason"] for part in parts] == ["first frame"] * 3
    whole = alone(segmenter_bundle, clip)
    assert parts[0] == whole[:10]
    assert [line["timestamp"] for part in parts for line in part] == [
        line["timestamp"] for line in whole
    ]
    video = cv2.VideoCapture(str(clip))
    frames = [video.read()[1] for _ in range(25)]
    with edge_mdeq.load(segmenter_bundle, threads=1) as model:
        shares = [describe(r, model.labels)["areas"] for r in model.stream(frames[10:20])]
    assert [line["areas"] for line in parts[1]] == shares


def test_an_item_at_which_workers_die_is_given_up(segmenter_bundle: Path, tmp_path: Path) -> None:
    from batch_ray import ATTEMPTS, Item, Worker

    worker = Worker(segmenter_bundle, SessionSettings(), 1, tmp_path)
    item = Item("a[1].avi", str(write_clip(tmp_path / "a[1].avi", 3)))
    for pid in range(ATTEMPTS - 1):
        (tmp_path / f".a[1].avi.jsonl.{pid}.tmp").touch()
    once_more = worker.answer(item)
    assert (once_more.failure, once_more.deaths) == ("", ATTEMPTS - 1)
    assert len(read(tmp_path / "a[1].avi.jsonl")) == 3
    (tmp_path / "a[1].avi.jsonl").unlink()
    (tmp_path / ".a[1].avi.jsonl.99.tmp").touch()
    assert f"died {ATTEMPTS} times" in worker.answer(item).failure
    assert not (tmp_path / "a[1].avi.jsonl").exists()


def test_a_worker_goes_on_after_an_item_that_fails_half_way(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    from batch_ray import Item, Worker

    folder, out = tmp_path / "walk", tmp_path / "out"
    folder.mkdir()
    for k, frame in enumerate(pan(3, seed=0)):
        cv2.imwrite(str(folder / f"{k}.png"), frame)
    (folder / "2.png").write_bytes(b"cut off")
    worker = Worker(segmenter_bundle, SessionSettings(), 1, out)
    outcome = worker.answer(Item("walk", str(folder)))
    assert "2.png cannot be decoded" in outcome.failure
    assert list(out.iterdir()) == [], "not even the two frames before it"
    assert worker.answer(Item("one", str(folder / "1.png"))).failure == ""
    assert len(read(out / "one.jsonl")) == 1


def test_a_video_that_ends_early_is_done_with_a_warning(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    from batch_ray import Item, Worker, summarise

    clip = write_clip(tmp_path / "cut.avi", 40)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    worker = Worker(segmenter_bundle, SessionSettings(), 1, tmp_path)
    item = Item("cut.avi", str(clip))
    outcome = worker.answer(item)
    if not outcome.warning:
        pytest.skip("this OpenCV rebuilds the index of a video that was cut off")
    assert outcome.failure == ""
    assert "of the 40 frames that it announces" in outcome.warning
    summarise([item], {"cut.avi": outcome}, tmp_path)
    (row,) = summarise([item], {}, tmp_path)  # as the next run does, which skips it
    assert row[2] == "done"
    assert row[-1] == outcome.warning
    assert worker.answer(replace(item, end=2)).warning == "", "said once, of that item alone"


def test_a_table_lists_paths_beside_it_and_elsewhere(tmp_path: Path) -> None:
    from batch_ray import list_items

    base = tmp_path / "tables"
    base.mkdir()
    elsewhere = tmp_path / "other.avi"
    table = base / "drives.csv"
    table.write_text(f"place,video\nA,day/a.avi\nB,../other.avi\nA,day/a.avi\nC,{elsewhere}\n")
    found = {item.name: item.source for item in list_items(table, "video", None)}
    assert found == {
        "day/a.avi": str(base / "day" / "a.avi"),
        str(elsewhere).lstrip("/"): str(elsewhere),
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "holds no video"),
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "neither a folder nor a .csv table"),
    ],
)
def test_sources_that_are_none(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    from batch_ray import list_items

    make(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        list_items(tmp_path / "source", "video", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,place\na.avi,A\n", "no column 'video', only path, place"),
        (b"video,place\na.avi,A\n,B\n", "line 3: 'video' is empty"),
        (b"video\n", "has no rows"),
        (b"", "no column 'video'"),
        ("video\nn\u00e4chtlich.avi\n".encode("latin-1"), "cannot be read as a table in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    from batch_ray import list_items

    table = tmp_path / "drives.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_items(table, "video", None)


def test_two_videos_never_share_results(tmp_path: Path) -> None:
    """A path beside the table may be another one from the root on."""
    from batch_ray import list_items

    table = tmp_path / "drives.csv"
    table.write_text("video\nelsewhere/a.avi\n/elsewhere/a.avi\n")
    with pytest.raises(DataError, match=r"would both write elsewhere/a\.avi\.jsonl"):
        list_items(table, "video", None)


def test_bad_input_is_a_message_before_anything_is_written(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.avi", 3)
    out, bundle = tmp_path / "out", segmenter_bundle
    for arguments, message in (
        ((tmp_path / "gone.mdeq", tmp_path, out), "gone.mdeq does not exist"),
        ((bundle, tmp_path / "gone", out), "gone does not exist"),
        ((bundle, tmp_path, out, "--tolerance", "-1"), "tolerance is -1"),
    ):
        status, _, errors = call(*arguments)
        assert status == 1
        assert errors.splitlines()[-1].startswith("error: ")
        assert message in errors
        assert "Traceback" not in errors
    assert not out.exists()


def test_without_ray_the_extra_is_named(segmenter_bundle: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", 3)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ray.py").write_text("raise ModuleNotFoundError('no ray here')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    status, _, errors = call(segmenter_bundle, tmp_path, tmp_path / "out", env=environment)
    assert status == 1
    assert "pip install 'edge-mdeq[batch]'" in errors.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_results_of_something_else_are_not_mixed_with(tmp_path: Path) -> None:
    from batch_ray import claiming

    out = tmp_path / "out"
    record = {"bundle": "a", "policy": "b", "segment": None}
    with claiming(out, record):
        assert json.loads((out / "batch.json").read_text()) == record
        with pytest.raises(SinkError, match="another run is writing"), claiming(out, record):
            pass
    with claiming(out, record):
        pass
    other = {**record, "bundle": "c", "segment": 5}
    with pytest.raises(SinkError, match="another bundle and segment"), claiming(out, other):
        pass
    assert json.loads((out / "batch.json").read_text()) == record
    (out / "batch.json").write_text("{")
    with pytest.raises(SinkError, match="bundle and policy and segment"), claiming(out, record):
        pass
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "drive.avi.jsonl").write_text("{}\n")
    with pytest.raises(SinkError, match="other files"), claiming(tmp_path / "else", record):
        pass
