"""The parts of the batch sample, without Ray: items, segments, tables and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from batch import alone, call, pan, read, write_clip

import edge_mdeq
from edge_mdeq.errors import DataError, SinkError
from mdeq_runtime import SessionSettings
from mdeq_runtime.sinks.jsonl import describe


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
