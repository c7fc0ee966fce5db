"""kill -9 before any file operation of a writer: the old artefact is whole, or the new one is."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from artefacts import ARTEFACTS
from durability import replay
from tracing import Call, Tracer, unavailable

WHY_NOT = unavailable()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

KILLS = 2  # of each writer and start here; tests/faults/sweep.py kills before every call
SEED = 9
ELSEWHERE = {"weights"}  # written as "weights-same-shape" are, and torch takes seconds to load
MAY_BE_LOST = {  # by a power cut: what is made anew, and the last seconds of a run
    "graph-cache",
    "json-lines",
    "masks",
    "newest",
}


@pytest.fixture(params=sorted(ARTEFACTS.keys() - ELSEWHERE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tracer(name: str, tmp_path: Path) -> Iterator[Tracer]:
    with Tracer(name, tmp_path / "calls.log") as tracer:
        yield tracer


def test_a_kill_leaves_the_old_or_the_new_and_a_power_cut_nothing_less(
    name: str, tracer: Tracer, tmp_path: Path
) -> None:
    from sweep import Sweep

    sweep = Sweep(name, tracer, tmp_path)
    for start in (None, "old"):
        points = sweep.points(start)
        chosen = random.Random(f"{SEED} {name} {start}").sample(points, min(KILLS, len(points)))
        for point in {*chosen, *points[-1:]}:
            sweep.kill(start, point)
    assert sweep.kills >= 2
    assert not sweep.broken, "\n".join(sweep.broken)
    if name not in MAY_BE_LOST:
        assert sweep.lost == {None: [], "old": []}


# The checks themselves


def call(name: str, text: str, result: int = 0, opened: str = "") -> Call:
    return Call(name, text, result, opened, 1)


WRITE = [
    call("openat", 'AT_FDCWD</d>, "x.tmp", O_WRONLY|O_CREAT', 3, "/d/x.tmp"),
    call("write", '3</d/x.tmp>, "..."', 9),
]
SYNC = [call("fsync", "3</d/x.tmp>")]
RENAME = [call("rename", '"/d/x.tmp", "/d/x"')]
SYNC_FOLDER = [call("fsync", "4</d>")]


def test_the_model_of_a_disk_knows_what_a_power_cut_takes() -> None:
    root, place = Path("/d"), Path("/d/x")
    good = replay([*WRITE, *SYNC, *RENAME, *SYNC_FOLDER], root)
    assert not good.faults
    assert not good.lost(place)
    early = replay([*WRITE, *RENAME, *SYNC_FOLDER], root)
    assert early.faults == ["/d/x.tmp became /d/x before the data of /d/x.tmp was fsynced"]
    assert early.lost(place) == ["the data of /d/x"]
    assert replay([*WRITE, *SYNC, *RENAME], root).lost(place) == ["the name /d/x"]
    fails = [call("fsync", "3</d/x.tmp>", -1)]
    assert replay([*WRITE, *fails, *RENAME, *SYNC_FOLDER], root).faults


def test_the_model_of_a_disk_follows_folders_that_change_their_names() -> None:
    root, place = Path("/d"), Path("/d/new/b")
    made = [
        call("mkdir", '"/d/tmp", 0777'),
        call("openat", 'AT_FDCWD</d>, "tmp/b", O_WRONLY|O_CREAT', 3, "/d/tmp/b"),
        call("write", '3</d/tmp/b>, "..."', 9),
    ]
    inside = [call("fsync", "3</d/tmp/b>"), call("fsync", "3</d/tmp>")]
    moved = [call("rename", '"/d/tmp", "/d/new"')]
    assert not replay([*made, *inside, *moved, *SYNC_FOLDER], root).lost(place)
    names = replay([*made, *inside[:1], *moved, *SYNC_FOLDER], root)
    assert names.faults == ["/d/tmp became /d/new before the names /d/tmp/b were fsynced"]
    assert names.lost(place) == ["the name /d/new/b"]
    swap = [call("renameat2", 'AT_FDCWD</>, "/d/tmp", AT_FDCWD</>, "/d/old", RENAME_EXCHANGE')]
    swapped = replay([*made, *swap, *SYNC_FOLDER], root)
    assert swapped.faults
    assert swapped.lost(Path("/d/old/b")) == ["the name /d/old/b", "the data of /d/old/b"]
    assert not swapped.lost(Path("/d/tmp"))


def test_a_kill_comes_before_the_call_that_was_named(tmp_path: Path) -> None:
    with Tracer("new-folder", tmp_path / "calls.log") as tracer:
        whole = tmp_path / "whole"
        whole.mkdir()
        calls = tracer.write(whole, "new")
        first = next(c for c in calls if c.name == "mkdir")
        rename = next(c for c in calls if c.name == "rename")
        for before, left in ((first, []), (rename, ["a"])):
            folder = tmp_path / f"killed-{before.name}"
            folder.mkdir()
            assert tracer.kill(folder, "new", (before.name, before.number))
            assert os.listdir(folder) == left
            assert not (folder / "a/b/file.json").exists()
        assert not tracer.kill(whole, "new", ("rename", 99))
    shutil.rmtree(whole)
