"""Logs for people, for journald, and for programs."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest

from mdeq_runtime.results import Result
from mdeq_runtime.service import logs
from mdeq_runtime.service.logs import event, journal_reads
from mdeq_runtime.service.story import telling_resets


def record(message: str, level: int = logging.WARNING, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("mdeq_runtime.x", level, "", 0, message, (), None)
    made.__dict__.update(more)
    return made


def test_an_event_is_one_json_object_on_one_line() -> None:
    fields = event("source", state="error", at=Path("/x"), residual=math.nan, rtsp="rtsp://a:b@c/")
    line = logs.JsonLines().format(record("gone:\nrtsp://joe:secret@gate/s?token=12", **fields))
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning",
        "event": "source",
        "message": "gone:\nrtsp://***@gate/s?token=***",
        "state": "error",
        "at": "/x",
        "residual": None,
        "rtsp": "rtsp://***@c/",
    }


def test_a_record_without_a_name_is_a_message() -> None:
    assert json.loads(logs.JsonLines().format(record("odd")))["event"] == "message"


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6),
     (logging.DEBUG, 7)],
)  # fmt: skip
def test_journald_is_told_how_grave_it_is_and_gets_one_line(level: int, priority: int) -> None:
    line = logs.Journal().format(record("a\nb", level))
    assert line == f"<{priority}>a b", "each line would be an entry of its own"
    nested = logs.Journal(logs.JsonLines()).format(record("a", level))
    assert nested.startswith(f"<{priority}>{{")


def test_journald_is_known_by_the_file_that_it_reads(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        found = os.fstat(file.fileno())
        there = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert journal_reads(file.fileno(), there)
        assert not journal_reads(file.fileno(), {})
        assert not journal_reads(0, there), "inherited, but redirected"


def test_cold_starts_of_a_kind_are_told_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    tell = telling_resets(lambda: now)
    mask = np.zeros((2, 2), np.uint8)
    with caplog.at_level(logging.INFO):
        for index in range(25):
            now = index / 10
            tell(Result(mask, None, 2, 0.5, False, False, "reset: cut", index=index,
                        cold="scene_cut"))  # fmt: skip
            tell(Result(mask, None, 2, 0.5, False, True, "", index=index))
        tell(Result(mask, None, 2, 0.5, False, False, "first frame", cold="first_frame"))
    told = [getattr(r, "fields", {}) for r in caplog.records]
    assert [fields["frame"] for fields in told] == [0, 10, 20]
    assert [fields["untold"] for fields in told] == [0, 9, 9]
