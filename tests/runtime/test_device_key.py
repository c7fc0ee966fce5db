"""The device's key: made once, for its owner alone, and refused where others could have put it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mdeq.errors import DeviceError
from mdeq_runtime import device_key as keys
from mdeq_runtime.device_key import device_key, key_path, made_here, tag
from mdeq_runtime.tensorrt.workshop import drop_foreign, vouch


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "edge-mdeq"


def test_a_key_is_made_at_first_use_and_kept(home: Path) -> None:
    key = device_key()
    assert len(key) == 32
    assert device_key() == key
    assert key_path() == home / "device.key"
    assert key_path().stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.listdir(home) == ["device.key"]


def test_two_devices_have_two_keys(tmp_path: Path) -> None:
    assert device_key(tmp_path / "a" / "key") != device_key(tmp_path / "b" / "key")


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    code = "from mdeq_runtime.device_key import device_key; print(device_key().hex())"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1


def foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)


def link(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path, _: path.chmod(0o640), "can be read or written by others: chmod 600"),
        (lambda path, _: path.chmod(0o620), "can be read or written by others: chmod 600"),
        (lambda path, _: path.parent.chmod(0o770), "others can write to: chmod go-w"),
        (lambda path, _: path.write_bytes(b"short"), "does not have 32 bytes: rm"),
        (lambda path, _: path.write_bytes(b"x" * 33), "does not have 32 bytes: rm"),
        (foreign, "belongs to user .*: name a folder of your own"),
        (link, "is no plain file: rm"),
    ],
)
def test_a_key_that_others_may_know_or_have_put_is_refused(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, pytest.MonkeyPatch], object], why: str
) -> None:
    device_key()
    spoil(key_path(), monkeypatch)
    with pytest.raises(DeviceError, match=why):
        device_key()


def test_where_none_can_be_kept_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match=r"cannot be used .*XDG_STATE_HOME"):
        device_key(tmp_path / "file" / "key")


def test_a_tag_holds_for_one_record_one_purpose_and_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"sha256": "ab", "bytes": 3}
    given = tag("engine", record)
    assert made_here("engine", {"bytes": 3, "sha256": "ab"}, given)
    assert not made_here("engine", record | {"bytes": 4}, given)
    assert not made_here("graph", record, given)
    for senseless in ("", None, 3, given[:-1], given.upper(), "é"):
        assert not made_here("engine", record, senseless)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    assert not made_here("engine", record, given)


def test_timings_of_another_device_are_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside engines, where whoever made the bundle may have put some."""
    timings = tmp_path / "timing.cache"
    timings.write_bytes(b"ours")
    vouch(timings)
    drop_foreign(timings)
    assert timings.read_bytes() == b"ours"
    timings.write_bytes(b"theirs")
    drop_foreign(timings)
    assert not timings.exists()
    drop_foreign(timings)


def test_a_tag_tells_nothing_of_the_key() -> None:
    assert device_key().hex() not in json.dumps(tag("engine", {}))
    assert len(device_key()) == keys.SIZE
