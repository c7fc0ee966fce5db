"""Why a network stream does not open. OpenCV only says that it did not; the server says more."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = ["CONNECT_S", "Diagnosis", "diagnose"]

TIMEOUT_S = 3.0
CONNECT_S = 1.0  # once it was there: a host that comes back is found by the next attempt
PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
LIMIT = 16384  # bytes of an answer
AGENT = "edge-mdeq"


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, and whether the server turned us away.

    Attributes:
        text: to follow the source's description; no credentials in it.
        refused: whether it wants other credentials, or none of us at all.
        given: whether it gives the stream, so that what is wrong is with its reading.
        silent: whether it took the connection, and said nothing in time.
    """

    text: str
    refused: bool = False
    given: bool = False
    silent: bool = False


class NoConnectionError(TimeoutError):
    """Nobody took the connection in time."""


def diagnose(uri: str, timeout_s: float = TIMEOUT_S, connect_s: float = TIMEOUT_S) -> Diagnosis:
    """Ask the server of an rtsp(s):// or http(s):// URI for the stream, as a player would.

    Args:
        uri: of the stream.
        timeout_s: for each part of an answer.
        connect_s: for the connection.

    Never raises; a server that answers as it should leaves the codec as the reason.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        return Diagnosis("is no address; write SCHEME://USER:PASSWORD@HOST:PORT/PATH")
    if not host:
        return Diagnosis("names no host; write SCHEME://HOST/PATH")
    where = f"{host}:{port}"
    try:
        status, header, body = ask(parts, (host, port), (connect_s, timeout_s), "")
        challenge = header.get("www-authenticate", "")
        if status == 401 and parts.username is not None and challenge:
            if re.search(r"algorithm=\"?(?!MD5\b)", challenge, re.IGNORECASE):
                text = f"wants a digest at {where} other than MD5 ({challenge})"
                return Diagnosis(text, given=True)  # for all that can be told from here
            answer = authorization(challenge, parts)
            status, header, body = ask(parts, (host, port), (connect_s, timeout_s), answer)
    except socket.gaierror:
        return Diagnosis(f"names the host {host}, which is not known; check its name and the DNS")
    except ssl.SSLError as error:
        return Diagnosis(f"has no TLS that this machine trusts at {where} ({error.reason})")
    except ConnectionRefusedError:
        return Diagnosis(f"is refused by {where}: nothing listens there; check the port")
    except TimeoutError as error:
        text = f"gets no answer from {where}; check its power, cable and address"
        return Diagnosis(text, silent=not isinstance(error, NoConnectionError))
    except ValueError:
        return Diagnosis(f"gets from {where} what is not {parts.scheme.upper()}; check the port")
    except OSError as error:
        return Diagnosis(f"cannot be reached at {where} ({error.strerror or error})")
    return judge(status, where, parts, body)


def judge(status: int, where: str, parts: SplitResult, body: str) -> Diagnosis:
    """What a server's answer means."""
    if status == 401 and parts.username is None:
        text = f"needs credentials at {where}; write {parts.scheme}://USER:PASSWORD@HOST/PATH"
        return Diagnosis(text, refused=True)
    if status in (401, 403):
        text = f"is denied at {where} ({status}): wrong user or password, or no right to see it"
        return Diagnosis(text, refused=True)
    if status == 404:
        return Diagnosis(f"is not at {where} (404); check the path of its URI")
    if status >= 300:
        return Diagnosis(f"is not given by {where} (status {status}); look into its log")
    codecs = ", ".join(re.findall(r"a=rtpmap:\d+ ([\w-]+)/", body))
    said = f" (it offers {codecs})" if codecs else ""
    return Diagnosis(
        f"answers at {where}, but gives no video that this OpenCV reads{said}; check its codec, "
        "its transport (--input-transport) and: edge-mdeq doctor",
        given=True,
    )


def ask(
    parts: SplitResult, server: tuple[str, int], limits_s: tuple[float, float], authorization: str
) -> tuple[int, dict[str, str], str]:
    """Status, header and the beginning of the body of one request."""
    (host, port), (connect_s, timeout_s) = server, limits_s
    target = target_of(parts, host)
    rtsp = parts.scheme.startswith("rtsp")
    lines = [f"DESCRIBE {target} RTSP/1.0", "CSeq: 1"] if rtsp else [f"GET {target} HTTP/1.0"]
    lines += [f"User-Agent: {AGENT}", *([] if rtsp else [f"Host: {host}:{port}"])]
    if authorization:
        lines.append(f"Authorization: {authorization}")
    try:
        connected = socket.create_connection(server, connect_s)
    except TimeoutError as error:
        raise NoConnectionError from error
    with connected as plain:
        plain.settimeout(timeout_s)
        secure = parts.scheme in ("rtsps", "https")
        # FFmpeg verifies no certificate unless told to, so nor does this question
        stream = context().wrap_socket(plain, server_hostname=host) if secure else plain
        stream.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while len(answer) < LIMIT and (got := stream.recv(4096)):
            answer += got
            head, end, body = answer.partition(b"\r\n\r\n")
            if end and (not rtsp or len(body) >= length_of(head)):
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    match = re.match(r"(?:RTSP|HTTP)/\d\.\d (\d{3})", first)
    if match is None or first.startswith("RTSP") != rtsp:
        raise ValueError("another protocol")
    header: dict[str, str] = {}
    for line in fields:
        name, _, value = line.partition(":")
        if "digest" in value.lower() or name.lower() not in header:  # rather than Basic
            header[name.lower()] = value.strip()
    return int(match[1]), header, body.decode("latin-1")


def target_of(parts: SplitResult, host: str) -> str:
    """What the request is for, without credentials."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not parts.scheme.startswith("rtsp"):
        return path
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{path}"


def length_of(head: bytes) -> int:
    match = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
    return int(match[1]) if match else 0


def context() -> ssl.SSLContext:
    found = ssl.create_default_context()
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    return found


def authorization(challenge: str, parts: SplitResult) -> str:
    """The answer to a challenge: Digest (RFC 2617, MD5) or Basic."""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not challenge.lower().startswith("digest"):
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm, nonce = asked.get("realm", ""), asked.get("nonce", "")
    method = "DESCRIBE" if parts.scheme.startswith("rtsp") else "GET"
    target = target_of(parts, parts.hostname or "")
    secret, action = md5(f"{user}:{realm}:{password}"), md5(f"{method}:{target}")
    counted = ""
    if "qop" in asked:
        counted = ', qop=auth, nc=00000001, cnonce="00000001"'
        response = md5(f"{secret}:{nonce}:00000001:00000001:auth:{action}")
    else:
        response = md5(f"{secret}:{nonce}:{action}")
    opaque = f', opaque="{asked["opaque"]}"' if "opaque" in asked else ""
    return (
        f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{target}", '
        f'response="{response}"{counted}{opaque}'
    )


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
