"""Logs for people, for journald, or one JSON object a line; secrets are in none of them.

An event of a run is a log record with a name and fields (``event``); a record without a name is a
"message".
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal, get_args

import msgspec

from edge_mdeq.errors import ConfigError
from mdeq_runtime.uris import redact

__all__ = ["LogFormat", "event", "journal_reads", "set_up"]

LogFormat = Literal["auto", "plain", "json"]
PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # of syslog
OURS, RELOADS = "mdeq_runtime", "mdeq_runtime.service.reloader"


def event(name: str, **fields: object) -> dict[str, Any]:
    """What ``extra=`` of a log call takes: an event's name and fields.

    >>> log.warning("the camera is back", extra=event("source", state="ok"))
    """
    return {"event": name, "fields": fields}


class Plain(logging.Formatter):
    """``warning: what it is``."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {redact(record.getMessage())}"


class Journal(logging.Formatter):
    """A line with syslog's priority before it, which journald takes off; others see it."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        message = self.inner.format(record) if self.inner else redact(record.getMessage())
        priority = next((p for level, p in PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>" + message.replace("\n", " ")


class JsonLines(logging.Formatter):
    """``{"time": ..., "level": ..., "event": ..., "message": ..., FIELDS}``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        fields: Mapping[str, object] = getattr(record, "fields", {})
        said = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "message": redact(record.getMessage()),
            **{k: redact(v) if isinstance(v, str) else v for k, v in fields.items()},
        }
        return msgspec.json.encode(said, enc_hook=str).decode()


def journal_reads(handle: int, environment: Mapping[str, str]) -> bool:
    """Whether what is written to a file handle goes to journald; see systemd.exec(5)."""
    try:
        found = os.fstat(handle)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up(chosen: str) -> bool:
    """Log to stderr in a format; whether it is JSON.

    "auto" and "plain" are for people, "auto" with priorities where journald reads; they have
    warnings, and what reloads came to. JSON has every event.

    Raises:
        ConfigError: an unknown format.
    """
    if chosen not in get_args(LogFormat):
        raise ConfigError(f"--log-format is {chosen!r}, must be auto, plain or json")
    formatter: logging.Formatter = JsonLines() if chosen == "json" else Plain()
    if chosen != "plain" and journal_reads(sys.stderr.fileno(), os.environ):
        formatter = Journal(formatter if chosen == "json" else None)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger(OURS if chosen == "json" else RELOADS).setLevel(logging.INFO)
    return chosen == "json"
