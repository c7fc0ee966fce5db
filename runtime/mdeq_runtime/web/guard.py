"""Who may ask the live page for what: before any request is looked at.

- The host that a request names must be this machine's, so that no foreign name that is made to
  point here (DNS rebinding) is answered.
- A page of another origin may neither read nor act: browsers say where a request comes from.
- Unless only this machine can reach the page, a token is asked for: in a link once, which becomes a
  cookie that scripts cannot read, or in a header ``Authorization: Bearer``.
- Every address may ask so often, and guess tokens less often.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Buckets", "Guard"]

HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
REQUESTS = (60, 20.0)  # at once, and per second, from one address
GUESSES = (10, 0.2)
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
PUBLIC = ("/page.css",)  # the form that asks for a token is styled too

ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>edge-mdeq</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/page.css">
<main class="ask"><h1>edge-mdeq</h1><p>{why}</p><form action="/" method="get">
<label>Token <input name="token" type="password" autocomplete="off" autofocus required></label>
<button>Open</button></form>
<p>It is in the link that the run printed when it started.</p></main></html>"""


class Buckets:
    """A token bucket for each of the last addresses that asked.

    Args:
        size: requests that may come at once.
        rate: requests per second in the long run.
        clock: seconds that only grow.
    """

    KEPT = 1024  # addresses

    def __init__(
        self, size: float, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.size, self.rate, self.clock = size, rate, clock
        self.levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def level(self, address: str) -> float:
        """How many requests it may make now."""
        level, at = self.levels.get(address, (self.size, self.clock()))
        return min(self.size, level + (self.clock() - at) * self.rate)

    def take(self, address: str) -> bool:
        """Count a request; False if it is one too many."""
        level = self.level(address)
        left = level - 1 if level >= 1 else level  # who asks too often still gets what is its due
        self.levels[address] = (left, self.clock())
        self.levels.move_to_end(address)
        if len(self.levels) > self.KEPT:
            self.levels.popitem(last=False)
        return level >= 1


class Guard:
    """Wraps an application; what may not pass is answered here.

    Args:
        app: what answers the rest.
        token: what viewers must know; None: nothing.
        names: host names, beside addresses, under which it may be asked for.
        any_address: whether every address counts as this machine's; else those of its loopback.
        port: of the page; cookies of several pages on one machine need several names.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        names: Collection[str],
        any_address: bool,
        port: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.token = app, token
        self.names = {name.lower().rstrip(".") for name in names}
        self.any_address, self.cookie = any_address, f"edge_mdeq_{port}"
        self.requests, self.guesses = Buckets(*REQUESTS, clock), Buckets(*GUESSES, clock)
        # hashes of tokens that were wrong: the same again, of a tab left open, is no guess
        self.wrong: deque[int] = deque(maxlen=Buckets.KEPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *RAW_HEADERS]
            await send(message)

        answer = self.judge(Request(scope))
        await (answer or self.app)(scope, receive, send_with_headers)

    def judge(self, request: Request) -> Response | None:
        """What is answered instead; None if the request may pass."""
        address = request.client.host if request.client else ""
        host = request.headers.get("host", "")
        if not self.is_ours(host):
            return refusal(
                421, f"this page is not known as {host[:100]!r}; start it with ?name=HOST"
            )
        if not same_origin(request, host):
            return refusal(403, "a page of another origin may not ask this")
        if not self.requests.take(address):
            return refusal(429, "too many requests; wait a second")
        if self.token is None or path_of(request) in PUBLIC:
            return None
        return self.ask_for_token(request, address)

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this machine, whatever the port: tunnels have others."""
        found = HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return self.any_address or address.is_loopback

    def ask_for_token(self, request: Request, address: str) -> Response | None:
        link = request.query_params.get("token") if path_of(request) == "/" else None
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        offered = [request.cookies.get(self.cookie), link]
        offered.append(bearer.strip() if scheme.lower() == "bearer" else None)
        given = [each for each in offered if each]
        if not given:
            return self.refuse_token(request, "This page asks for its token.")
        if self.guesses.level(address) < 1:
            return refusal(429, "too many wrong tokens; wait a minute")
        if not any(self.is_token(each) for each in given):
            if guessed := {hash(each) for each in given}.difference(self.wrong):
                self.guesses.take(address)
                self.wrong.extend(guessed)
            return self.refuse_token(request, "This is not the page's token.")
        if link is None:
            return None
        answer = RedirectResponse("/", 303)  # so that the token stays in no history
        if self.is_token(link):
            answer.set_cookie(self.cookie, link, httponly=True, samesite="lax")
        return answer

    def is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    def refuse_token(self, request: Request, why: str) -> Response:
        if path_of(request) == "/":
            return HTMLResponse(ASK.format(why=why), 401)
        return refusal(401, why)


def same_origin(request: Request, host: str) -> bool:
    """Whether a request comes from this page itself, from no page, or opens it in a window."""
    origin = request.headers.get("origin")
    try:
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return False
    except ValueError:
        return False
    site = request.headers.get("sec-fetch-site", "none")
    if site in ("none", "same-origin"):
        return True
    opened = request.headers.get("sec-fetch-mode") == "navigate"
    return opened and request.method == "GET" and path_of(request) == "/"


def path_of(request: Request) -> str:
    """The path that is routed. ``request.url`` is made of the Host header too, which may lie."""
    return str(request.scope["path"])


def refusal(status: int, why: str) -> Response:
    headers = {"retry-after": "2"} if status in (429, 503) else {}
    return PlainTextResponse(why + "\n", status, headers)
