"""Where a live page is served, and how: ``http://HOST:PORT?viewers=4&rate=10``."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from edge_mdeq.errors import SinkError
from mdeq_runtime.uris import did_you_mean

__all__ = ["PageAddress", "is_loopback", "listen", "parse_address", "reachable_host"]

DEFAULT_PORT = 8080
SEND_BUFFER = 256 * 1024  # bytes per viewer: more would only make a slow one see older frames
GONE_MS = 20_000  # a viewer that takes nothing for so long has gone
LIMITS = {"viewers": (1, 1000), "rate": (0.1, 120), "quality": (1, 100), "width": (64, 8192)}


@dataclass(frozen=True)
class PageAddress:
    """Where to listen, and what viewers get.

    Attributes:
        host: the address to listen on; "0.0.0.0" or "::" for all of the machine's.
        port: 0 for any free one.
        viewers: streams at most; further ones are told to come back.
        rate: frames per second at most.
        quality: of JPEG, 1...100.
        width: pixels at most; wider frames are scaled down.
        controls: whether viewers may change the policy.
        names: further host names under which the page may be asked for.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    viewers: int = 24
    rate: float = 15.0
    quality: int = 80
    width: int = 1280
    controls: bool = True
    names: tuple[str, ...] = ()


def parse_address(uri: str) -> PageAddress:
    """Read ``http://HOST:PORT?NAME=VALUE&...``; without a host it is this machine alone.

    Raises:
        SinkError: it makes no sense; what may be secret in it is not repeated.
    """
    try:
        parts = urlsplit(uri)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise SinkError(f"the live page's address makes no sense ({error}): {USAGE}") from error
    if parts.scheme != "http":
        raise SinkError(
            "a live page is served by http://; for https:// put a reverse proxy before it that "
            "holds the certificate, and name its host with ?name=HOST"
        )
    if parts.username is not None or parts.password is not None:
        raise SinkError(
            "a live page takes no user and password in its address; viewers need its token, which "
            "is printed, or is what the variable EDGE_MDEQ_TOKEN holds"
        )
    if parts.path not in ("", "/") or parts.fragment:
        raise SinkError(f"a live page has no path {parts.path!r}: {USAGE}")
    given: dict[str, str] = {}
    names = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "name":
            names.append(check_name(value))
        elif name in given:
            raise SinkError(f"the live page's option {name} is given twice; drop one")
        else:
            given[name] = value
    host = parts.hostname or "127.0.0.1"
    return PageAddress(host, port, names=tuple(names), **read_options(given))  # type: ignore[arg-type]


USAGE = "write http://HOST:PORT, such as http://0.0.0.0:8080 for all of this machine's addresses"


def check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", name):
        raise SinkError(f"{name!r} is no host name; write ?name=camera.example.org")
    return name.lower()


def read_options(given: Mapping[str, str]) -> dict[str, float | int | bool]:
    """The options as numbers.

    Raises:
        SinkError: an unknown one, or a value that is none of its own.
    """
    found: dict[str, float | int | bool] = {}
    known = [*LIMITS, "controls", "name"]
    for name, value in given.items():
        if name == "controls":
            if value not in ("on", "off"):
                raise SinkError(f"the live page's controls are {value!r}, must be on or off")
            found[name] = value == "on"
        elif name not in LIMITS:
            hint = did_you_mean(name, known) or ";"
            raise SinkError(
                f"unknown option {name!r} of the live page{hint} known: {', '.join(known)}"
            )
        else:
            least, most = LIMITS[name]
            try:
                number = float(value) if name == "rate" else int(value)
            except ValueError:
                number = -1
            if not least <= number <= most:
                raise SinkError(
                    f"the live page's {name} is {value!r}, must be between {least} and {most}"
                )
            found[name] = number
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a page on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(address: PageAddress) -> socket.socket:
    """A listening socket.

    Raises:
        SinkError: the port is in use or needs root, or the machine has no such address.
    """
    where = f"port {address.port} of {address.host}"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SinkError(
            f"the live page's host {address.host!r} is unknown ({error.strerror}); {USAGE}"
        ) from error
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit all of these
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        server.bind(place)
        server.listen(128)
    except OSError as error:
        server.close()
        raise SinkError(f"{where} {why(error)}") from error
    return server


def why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "is in use by another program; choose another port, or end that program"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may only be used by root; choose a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return "cannot be used: this machine has no such address; take 0.0.0.0 for all it has"
    return f"cannot be used ({os.strerror(error.errno or 0)}); choose another host or port"


def reachable_host(host: str) -> str:
    """A host to put into a link: for all addresses, the one that leads out of this machine."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of no packet: it only asks the routing table
            found = str(probe.getsockname()[0])
        except OSError:  # no network
            return "127.0.0.1"
    return found
