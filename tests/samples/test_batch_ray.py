"""samples/batch_ray.py with two workers, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from batch import alone, needs_ray, pan, read, start, summary, write_clip


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
