"""A bundle is written as a whole: whatever stops it, the old one or the new one is there."""

from __future__ import annotations

import errno
import linecache
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
from tiny_bundle import CONTENT, GRAPH, WEIGHTS, fill, manifest_of, names, producer

import edge_mdeq
from edge_mdeq.bundle import open_bundle, writer, writing_bundle
from edge_mdeq.bundle.writer import describe_files
from edge_mdeq.errors import BundleError


def test_a_written_bundle_leaves_nothing_beside_it(bundle: Path) -> None:
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_nothing_is_at_the_place_until_the_block_ends(tmp_path: Path) -> None:
    with writing_bundle(tmp_path / "tiny.mdeq") as folder:
        fill(folder)
        assert not (tmp_path / "tiny.mdeq").exists()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with writing_bundle(tmp_path / "a" / "b" / "tiny.mdeq") as folder:
        fill(folder)
    open_bundle(tmp_path / "a" / "b" / "tiny.mdeq", verify=True)


def test_files_are_described_by_relative_name_hash_and_size(bundle: Path) -> None:
    assert describe_files(bundle) == manifest_of(CONTENT).files


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"must end in \.mdeq"), writing_bundle(tmp_path / "tiny"):
        pytest.fail("entered")


def test_an_existing_bundle_is_refused_without_force(bundle: Path) -> None:
    with pytest.raises(BundleError, match="already exists; replace it with --force"):
        replace_bundle(bundle, force=False)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"


def replace_bundle(path: Path, force: bool = True) -> None:
    with writing_bundle(path, force=force) as folder:
        fill(folder, {GRAPH: producer("new"), WEIGHTS: b"new weights"}, name="new")


def test_force_replaces_a_bundle_as_a_whole(bundle: Path) -> None:
    (bundle / "left.over").write_bytes(b"")
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert names(bundle) == ["graphs", "manifest.json"]
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_a_reader_sees_the_old_bundle_until_it_sees_the_new_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_and_exchange(new: Path, path: Path) -> bool:
        seen.append(open_bundle(path, verify=True).manifest.name)
        exchanged = exchange(new, path)
        seen.append(open_bundle(path, verify=True).manifest.name)
        return exchanged

    exchange = writer.exchange
    monkeypatch.setattr(writer, "exchange", look_and_exchange)
    replace_bundle(bundle)
    assert seen == ["tiny", "new"]


def test_force_replaces_where_folders_cannot_be_exchanged(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "exchange", lambda a, b: False)
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_force_never_replaces_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "home.mdeq").mkdir()
    (tmp_path / "home.mdeq" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        replace_bundle(tmp_path / "home.mdeq")
    assert names(tmp_path / "home.mdeq") == ["thesis.tex"]


def fail_while_writing(path: Path, error: type[BaseException]) -> None:
    with writing_bundle(path, force=True) as folder:
        (folder / "half").write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_the_old_bundle_and_no_temporary(
    bundle: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        fail_while_writing(bundle, error)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def replaced_unless_interrupted(path: Path, number: int) -> bool:
    """Replace a bundle, with Ctrl-C before the ``number``-th line that the writer executes.

    Not while it removes its folder: by then the first Ctrl-C has had any further one ignored.
    """
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> object:
        nonlocal count
        code = frame.f_code
        if code.co_filename != writer.__file__ or code.co_name in ("remove", "clear"):
            return None
        line = linecache.getline(code.co_filename, frame.f_lineno).strip()
        if event == "line" and line not in ("work.remove()", "try:"):  # where none is looked for
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        replace_bundle(path)
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(None)
    return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an open file
def test_an_interruption_before_any_line_leaves_a_bundle_and_no_temporary(bundle: Path) -> None:
    found, number = [], 1
    while not replaced_unless_interrupted(bundle, number):
        found.append(open_bundle(bundle, verify=True).manifest.name)
        assert names(bundle.parent) == ["tiny.mdeq"]
        number += 1
    assert set(found) == {"tiny", "new"}
    assert len(found) > 30


def test_a_full_disk_leaves_the_old_bundle_and_no_temporary(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot write .*: No space left"):
        replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write to .*/file"):
        replace_bundle(tmp_path / "file" / "tiny.mdeq")
    with pytest.raises(BundleError, match=r"cannot write to .*: File name too long"):
        replace_bundle(tmp_path / f"{'long' * 80}.mdeq")
    assert names(tmp_path) == ["file"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from edge_mdeq.bundle import writer, writing_bundle

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def exchange_and_die(new, path):
    exchange(new, path)
    die()

def rename_once_and_die(source, target):
    rename(source, target)
    die()

exchange, rename, moment = writer.exchange, os.rename, sys.argv[3]
if moment == "before the exchange":
    writer.exchange = die
elif moment == "after the exchange":
    writer.exchange = exchange_and_die
elif moment == "while the old one is removed":
    shutil.rmtree = lambda place, **_: die(os.remove(place / "new" / "manifest.json"))
elif moment == "between two renames":
    writer.exchange = lambda new, path: False
    os.rename = rename_once_and_die
with writing_bundle(Path(sys.argv[1]), force=True) as folder:
    if moment == "while it is written":
        (folder / "manifest.json").write_text("half")
        die()
    shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)
"""


def kill_a_writer(bundle: Path, new: Path, moment: str) -> None:
    package_root = str(Path(edge_mdeq.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle), str(new), moment],
        env=os.environ | {"PYTHONPATH": package_root},
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """What is to take the bundle's place, elsewhere."""
    path = tmp_path / "elsewhere"
    fill(path, name="other")
    return path


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("while it is written", "tiny"),
        ("before the exchange", "tiny"),
        ("after the exchange", "other"),
        ("while the old one is removed", "other"),
    ],
)
def test_a_killed_export_leaves_a_whole_bundle_and_nothing_in_the_next_one_s_way(
    bundle: Path, other: Path, moment: str, left: str
) -> None:
    kill_a_writer(bundle, other, moment)
    assert open_bundle(bundle, verify=True).manifest.name == left
    assert len(names(bundle.parent)) == 3, "what it left behind"
    with pytest.raises(BundleError, match="already exists"):
        replace_bundle(bundle, force=False)
    assert names(bundle.parent) == ["elsewhere", "tiny.mdeq"], "even an attempt tidies up"
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"


def test_a_kill_where_folders_cannot_be_exchanged_loses_nothing(bundle: Path, other: Path) -> None:
    kill_a_writer(bundle, other, "between two renames")
    with pytest.raises(BundleError, match=r"was killed, and left it in (\S*/old): rename") as hint:
        open_bundle(bundle)
    aside = Path(str(hint.value).rsplit(" in ", 1)[1].split(": rename", maxsplit=1)[0])
    assert open_bundle(aside, verify=True).manifest.name == "tiny"
    with pytest.raises(BundleError, match="already exists"):
        replace_bundle(bundle, force=False)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["elsewhere", "tiny.mdeq"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_swap_that_stops_in_the_middle_is_undone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def rename(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise error
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(writer, "exchange", lambda a, b: False)
    with pytest.raises(BundleError if error is OSError else error):
        replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "tiny"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_two_exports_at_once_leave_each_other_alone(bundle: Path) -> None:
    with writing_bundle(bundle, force=True) as first:
        fill(first, name="first")
        replace_bundle(bundle)
        assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert open_bundle(bundle, verify=True).manifest.name == "first"
    assert names(bundle.parent) == ["tiny.mdeq"]


def test_where_nothing_can_be_locked_others_folders_stay(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: whether their writer lives cannot be known."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("edge_mdeq.files.fcntl.flock", refuse)
    fill(bundle.parent / f".{bundle.name}.abcd.tmp" / "new", name="theirs")
    replace_bundle(bundle)
    assert open_bundle(bundle, verify=True).manifest.name == "new"
    assert len(names(bundle.parent)) == 2
