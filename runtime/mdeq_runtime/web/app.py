"""What the live page answers: itself, the stream, its figures, a snapshot, metrics and controls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime.prometheus import prometheus_text
from mdeq_runtime.web.broadcast import Broadcast
from mdeq_runtime.web.controls import Controllable, describe_policy, read_policy
from mdeq_runtime.web.publisher import BOUNDARY, Publisher

__all__ = ["make_app"]

STATIC = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/charts.js": ("charts.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
BODY, BODY_S = 4096, 10.0  # bytes of a request at most, and seconds for them to come
MULTIPART = f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}"


def make_app(
    publisher: Publisher, snapshot: Callable[[], bytes | None], viewers: int, controls: bool
) -> Starlette:
    """The application; whoever may not use it is kept out by ``Guard``.

    Args:
        publisher: the frames and figures that are streamed.
        snapshot: the newest annotated frame as JPEG in its own size, None before the first.
        viewers: streams of frames at most, and as many of figures.
        controls: whether the policy may be changed.
    """
    actions = Actions(publisher, snapshot, controls)
    opening = b"--" + BOUNDARY + b"\r\n"
    routes = [
        *(Route(path, static(*found), methods=["GET"]) for path, found in STATIC.items()),
        Route("/stream.mjpg", Stream(publisher.frames, MULTIPART, viewers, opening)),
        Route(
            "/events", Stream(publisher.events, "text/event-stream", viewers, b"retry: 2000\n\n")
        ),
        Route("/snapshot.jpg", actions.snapshot, methods=["GET"]),
        Route("/metrics", actions.metrics, methods=["GET"]),
        Route("/policy", actions.policy, methods=["GET", "POST"]),
        Route("/reset", actions.reset, methods=["POST"]),
    ]
    return Starlette(routes=routes)


def static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """A file of the page, read once."""
    data = (files(__package__) / "static" / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(data, media_type=f"{kind}; charset=utf-8")

    return answer


class Stream:
    """Sends what a broadcast publishes, until the viewer or the page goes away.

    Args:
        broadcast: what is sent.
        media_type: of the stream.
        most: viewers at once.
        opening: what each stream begins with.
    """

    def __init__(self, broadcast: Broadcast, media_type: str, most: int, opening: bytes) -> None:
        self.broadcast, self.media_type = broadcast, media_type
        self.most, self.opening = most, opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: ASGIApp | None = None
        if scope["method"] != "GET":
            refused = PlainTextResponse("streams are read with GET\n", 405, {"allow": "GET"})
        elif self.broadcast.followers >= self.most:
            text = f"{self.most} viewers are watching, no more are let in; try again later\n"
            refused = PlainTextResponse(text, 503, {"retry-after": "10"})
        if refused is not None:
            await refused(scope, receive, send)
            return
        self.broadcast.join()
        sending = asyncio.ensure_future(self.stream(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            self.broadcast.leave()

    async def stream(self, send: Send) -> None:
        headers = [(b"content-type", self.media_type.encode()), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = self.opening
        number = 0
        while True:
            # comes back when the viewer has taken most of it: a slow one skips frames meanwhile
            await send({"type": "http.response.body", "body": body, "more_body": True})
            found = await self.broadcast.after(number)
            if found is None:
                break
            number, items = found
            body = items[0] if len(items) == 1 else b"".join(items)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def gone(receive: Receive) -> None:
    """Wait for the viewer to go away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Actions:
    """What is asked for once."""

    def __init__(
        self, publisher: Publisher, snapshot: Callable[[], bytes | None], controls: bool
    ) -> None:
        self.figures, self.take, self.controls = publisher.figures, snapshot, controls
        self.busy = asyncio.Lock()  # one at a time: each takes a thread and some memory
        self.changing = asyncio.Lock()  # loading graphs may take a minute, for which nobody waits

    async def snapshot(self, request: Request) -> Response:
        async with self.busy:
            data = await run_in_threadpool(self.take)
        if data is None:
            return PlainTextResponse("no frame has come yet\n", 404)
        name = time.strftime("edge-mdeq-%Y%m%d-%H%M%S.jpg")
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def metrics(self, request: Request) -> Response:
        metrics = self.figures.metrics
        if metrics is None:
            return PlainTextResponse("no run has begun yet\n", 503, {"retry-after": "2"})
        async with self.busy:
            text = await run_in_threadpool(prometheus_text, metrics)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def policy(self, request: Request) -> Response:
        session = self.figures.session
        if request.method == "GET":
            settings = getattr(session, "settings", None)
            return JSONResponse(None if settings is None else describe_policy(settings.policy))
        return await self.act(request, change)

    async def reset(self, request: Request) -> Response:
        return await self.act(request, restart)

    async def act(self, request: Request, act: Callable[[Controllable, bytes], object]) -> Response:
        """Do what a viewer asks, in a thread: graphs may have to be loaded for it."""
        if not self.controls:
            return failure(403, "the controls of this page are off")
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/json":  # which no form of another page can send
            return failure(415, "send application/json")
        try:
            body = await asyncio.wait_for(read_body(request), BODY_S)
        except asyncio.TimeoutError:
            return failure(408, f"the rest of the request did not come within {BODY_S:g} s")
        except ClientDisconnect:
            return failure(400, "the rest of the request did not come")  # nobody reads that
        if body is None:
            return failure(413, f"a request has at most {BODY} bytes")
        session = self.figures.session
        if not isinstance(session, Controllable):
            return failure(409, "what answers frames here cannot be changed, or has not begun")
        try:
            async with self.changing:
                return JSONResponse(await run_in_threadpool(act, session, body))
        except EdgeMdeqError as error:
            return failure(409, str(error))


def change(session: Controllable, body: bytes) -> object:
    policy = read_policy(body)
    session.use(policy)
    return describe_policy(policy)


def restart(session: Controllable, body: bytes) -> object:
    session.reset("asked for on the live page")
    return {}


async def read_body(request: Request) -> bytes | None:
    """The body of a request; None if it is too large, of which no more than that is read."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY:
            return None
    return body


def failure(status: int, why: str) -> Response:
    return Response(msgspec.json.encode({"error": why}), status, media_type="application/json")
