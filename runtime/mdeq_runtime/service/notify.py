"""systemd's notification protocol: one datagram of ``KEY=value`` lines for each message.

See sd_notify(3) and sd_watchdog_enabled(3). Nothing of systemd need be installed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["Notifier", "open_notifier"]

log = logging.getLogger(__name__)

SOCKET, USEC, PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
LONGEST = 200  # characters of a status, which is one line of `systemctl status`


class Notifier:
    """Tells a service manager how the service is doing; without one it tells nobody.

    A message that cannot be sent is a warning, once: a service does not end because its manager is
    being restarted.

    Args:
        address: the manager's datagram socket: a path, or ``@name`` in Linux's abstract namespace;
            "" for no manager.
        watchdog_s: seconds within which it expects a sign of life; None: it expects none.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.address, self.watchdog_s = address, watchdog_s if address else None
        self.failing = False

    def __bool__(self) -> bool:
        """Whether there is a manager."""
        return bool(self.address)

    def ready(self) -> None:
        """It has started, or has reloaded."""
        self.send("READY=1")

    def reloading(self) -> None:
        """It reloads; ``ready`` is to follow. systemd wants to know since when."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """It is about to end."""
        self.send("STOPPING=1")

    def alive(self) -> None:
        """It does its work; to be called at least every ``watchdog_s``."""
        if self.watchdog_s is not None:
            self.send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """A line for people."""
        self.send("STATUS=" + " ".join(text.split())[:LONGEST])

    def send(self, *lines: str) -> None:
        """Send one message, without waiting for a manager that does not read."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode(), address)
            self.failing = False
        except OSError as error:
            if not self.failing:
                log.warning(
                    "the service manager at %s cannot be told %s (%s); going on",
                    self.address, lines[0], error.strerror or error,
                )  # fmt: skip
            self.failing = True


def open_notifier(environment: MutableMapping[str, str] | None = None) -> Notifier:
    """The notifier that the environment asks for; child processes are no longer asked.

    A watchdog that is meant for another process (WATCHDOG_PID), and numbers that make no sense, are
    passed over, as systemd's own library does.
    """
    found = os.environ if environment is None else environment
    address, usec, pid = (found.pop(name, "") for name in (SOCKET, USEC, PID))
    if not address:
        return Notifier()
    if not address.startswith(("/", "@")) or len(address) < 2:
        log.warning("%s is %r, neither a path nor @name; nobody is notified", SOCKET, address)
        return Notifier()
    watchdog_s = int(usec) / 1e6 if usec.isdecimal() and int(usec) > 0 else None
    if pid and pid != str(os.getpid()):
        watchdog_s = None
    return Notifier(address, watchdog_s)
