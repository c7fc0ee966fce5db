"""A reload under a memory limit, in processes of their own: a process has one arena for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bundles import another, spoil

from edge_mdeq.bundle import open_bundle
from mdeq_runtime.memory import resident_bytes

TIGHT = """
import json, shutil, sys
from pathlib import Path
import numpy as np
from edge_mdeq.errors import BundleError, EdgeMdeqError, MemoryLimitError
from mdeq_runtime import FixedIterations, Frame, Model, SessionSettings
from mdeq_runtime.service import reload
link, what = Path(sys.argv[1]), sys.argv[2]
settings = SessionSettings(FixedIterations(2), reset_on_cut=False, restart_above=1e9)
least = 0
for limit in ("1MiB", "2MiB"):  # the first one brings in what a limit needs
    try:
        Model(link, settings, threads=1, memory_limit=limit)
    except MemoryLimitError as error:
        least = int(str(error).split("the least it needs is ")[1].split()[0]) + 6
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
model = Model(link, settings, threads=1, memory_limit=f"{least}MiB")
changes = []
with reload.ReloadableSession(link, model, changes.append) as session:
    session(image)
    if what == "gone":
        for file in link.resolve().rglob("*.onnx"):
            file.write_bytes(b"")
    if what == "fails":
        loading = reload.rehearse
        def rehearse(session, size, newest=None):
            if changes[-1:] == [None] and not rehearse.failed:
                rehearse.failed = True
                raise BundleError("it does not answer")
            loading(session, size, newest)
        rehearse.failed = False
        reload.rehearse = rehearse
    for path in sys.argv[3:]:
        link.unlink()
        link.symlink_to(path)
        try:
            session.reload()
            print("reloaded", session.manifest.name)
        except EdgeMdeqError as error:
            print(type(error).__name__, error)
    found = session(image)
    print("goes on", session.manifest.name, found.cold)
    print("without", changes.count(None))
    report = session.model.memory()
    print("within", report.measured <= report.limit and report.predicted <= report.limit)
"""

needs_proc = pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc")


def tight(link: Path, what: str, *bundles: Path) -> list[str]:
    command = [sys.executable, "-c", TIGHT, str(link), what, *map(str, bundles)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_proc
def test_where_both_do_not_fit_the_old_one_goes_first_if_the_new_one_is_good(
    link: Path, segmenter_bundle: Path, classifier_bundle: Path, tmp_path: Path
) -> None:
    two = another(segmenter_bundle, tmp_path / "two.mdeq")
    damaged = spoil(another(segmenter_bundle, tmp_path / "damaged.mdeq"))
    said = tight(link, "", damaged, classifier_bundle, two)
    assert said[0].startswith("BundleError")
    assert said[1].startswith("BundleError")
    assert said[2:] == ["reloaded two", "goes on two reload", "without 1", "within True"], (
        "only the good one was worth a pause"
    )


@needs_proc
def test_the_old_one_is_loaded_again_if_the_new_one_fails_after_all(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    said = tight(link, "fails", another(segmenter_bundle, tmp_path / "two.mdeq"))
    name = open_bundle(segmenter_bundle).manifest.name
    assert said == [
        "BundleError it does not answer", f"goes on {name} reload", "without 1", "within True",
    ]  # fmt: skip


@needs_proc
def test_what_could_not_be_loaded_again_is_not_let_go_of(
    link: Path, segmenter_bundle: Path, tmp_path: Path
) -> None:
    said = tight(link, "gone", another(segmenter_bundle, tmp_path / "two.mdeq"))
    assert said[0].startswith("MemoryLimitError")
    assert "could not be loaded again; start again to change it" in said[0]
    assert said[1].startswith("goes on segmenter"), "warm or cold, by the model that is loaded"
    assert said[2] == "without 0"
