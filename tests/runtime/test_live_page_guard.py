"""Who is let in to the live page, and what garbage, greed and wrong addresses get for an answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from pages import StandIn, Viewer, ask, post, raw, running_page, wait_for

from edge_mdeq.errors import MissingExtraError, SinkError
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.web import LivePage
from mdeq_runtime.web.address import PageAddress, parse_address, reachable_host

pytest.importorskip("starlette", reason="needs the extra web")
pytest.importorskip("uvicorn", reason="needs the extra web")

from mdeq_runtime.web import app, guard, server
from mdeq_runtime.web.guard import Buckets

pytestmark = pytest.mark.clock

EVERYWHERE = "http://0.0.0.0:0"


@pytest.fixture
def local() -> Iterator[LivePage]:
    """A page that only this machine can reach, without a token."""
    with running_page() as page:
        yield page


@pytest.fixture
def public() -> Iterator[LivePage]:
    """A page that all can reach, with a token that it made itself."""
    with running_page(EVERYWHERE) as page:
        yield page


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# The token


def test_without_the_token_nothing_is_shown(public: LivePage) -> None:
    for path in ("/stream.mjpg", "/events", "/snapshot.jpg", "/metrics", "/policy", "/page.js"):
        status, _, body = ask(public, path)
        assert status == 401, path
        assert len(body) < 200
    status, _, form = ask(public, "/")
    assert status == 401
    assert b'name="token"' in form
    status, _, _ = ask(public, "/reset", "POST", b"{}", {"Content-Type": "application/json"})
    assert status == 401
    assert not public.figures.session.resets


@pytest.mark.parametrize("more", ["/page.css?", "/page.css#", "\\page.css", "@127.0.0.1"])
def test_no_host_talks_its_way_past_the_token(public: LivePage, more: str) -> None:
    """Of a Host header and a path a URL can be made whose path is another one."""
    for path in ("/snapshot.jpg", "/metrics"):
        assert ask(public, path, headers={"Host": f"127.0.0.1{more}"})[0] == 421


def test_the_printed_link_opens_the_page_and_the_token_leaves_the_address(
    public: LivePage,
) -> None:
    assert public.token is not None
    assert len(public.token) >= 32
    path = public.url[public.url.index("/?") :]
    status, headers, _ = ask(public, path)
    assert status == 303
    assert headers["location"] == "/"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    kept = {"Cookie": cookie.partition(";")[0]}
    assert ask(public, "/", headers=kept)[0] == 200
    assert ask(public, "/snapshot.jpg", headers=kept)[0] == 200


def test_programs_send_the_token_in_a_header(public: LivePage) -> None:
    assert ask(public, "/metrics", headers=bearer(public.token))[0] == 200
    assert post(public, "/reset", {}, **bearer(public.token))[0] == 200
    for wrong in ("", "x", f"{public.token}x", (public.token or "")[:-1], "ümläut"):
        found = ask(
            public,
            "/metrics",
            headers={"Authorization": f"Bearer {wrong}".encode("latin-1").decode("latin-1")},
        )
        assert found[0] == 401, wrong


def test_the_token_counts_in_the_link_of_the_page_alone(public: LivePage) -> None:
    """Elsewhere it would end up in logs and referrers."""
    assert ask(public, f"/metrics?token={public.token}")[0] == 401


def test_tokens_are_not_to_be_guessed(public: LivePage) -> None:
    answers = [ask(public, "/metrics", headers=bearer(f"guess {n}"))[0] for n in range(12)]
    assert answers[:10] == [401] * 10
    assert answers[-1] == 429
    assert ask(public, "/metrics", headers=bearer(public.token))[0] == 429, "nor to be told right"


def test_a_tab_with_the_token_of_an_earlier_run_locks_nobody_out(public: LivePage) -> None:
    stale = {"Cookie": f"edge_mdeq_{public.port}=of-yesterday-0123456789"}
    assert [ask(public, "/events", headers=stale)[0] for _ in range(20)] == [401] * 20
    assert ask(public, "/metrics", headers=bearer(public.token))[0] == 200


def test_every_run_has_a_token_of_its_own_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LivePage(EVERYWHERE, (), ()) as one, LivePage(EVERYWHERE, (), ()) as other:
        assert one.token != other.token
    monkeypatch.setenv("EDGE_MDEQ_TOKEN", "of-our-own-0123456789")
    with LivePage(EVERYWHERE, (), ()) as page:
        assert "of-our-own" not in page.url
        assert ask(page, "/", headers=bearer("of-our-own-0123456789"))[0] == 200
    with LivePage("http://localhost:0", (), ()) as page:
        assert ask(page, "/")[0] == 401, "a given token is asked for everywhere"
    monkeypatch.setenv("EDGE_MDEQ_TOKEN", "1234")
    with pytest.raises(SinkError, match="4 characters, needs 16 or more") as caught:
        LivePage(EVERYWHERE, (), ())
    assert "1234;" not in str(caught.value)


# Host and origin


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:80", "LOCALHOST."])
def test_this_machine_by_its_own_names(local: LivePage, host: str) -> None:
    assert ask(local, "/", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "192.0.2.7", "localhost.evil.example", "[", ""])
def test_a_foreign_name_that_points_here_is_not_answered(local: LivePage, host: str) -> None:
    status, _, body = ask(local, "/", headers={"Host": host})
    assert status == 421
    assert b"?name=HOST" in body


def test_names_and_addresses_of_a_public_page() -> None:
    with running_page(EVERYWHERE + "?name=gate.example.org") as page:
        known = bearer(page.token)
        for host in ("gate.example.org", "192.0.2.7:8080", socket.gethostname()):
            assert ask(page, "/", headers={**known, "Host": host})[0] == 200, host
        assert ask(page, "/", headers={**known, "Host": "evil.example"})[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://localhost:1"},  # another program on this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_a_page_of_another_origin_neither_reads_nor_acts(
    local: LivePage, headers: dict[str, str]
) -> None:
    for path in ("/stream.mjpg", "/events", "/snapshot.jpg"):
        assert ask(local, path, headers=headers)[0] == 403
    given = {"Content-Type": "application/json", **headers}
    assert ask(local, "/reset", "POST", b"{}", given)[0] == 403
    assert not local.figures.session.resets


def test_the_page_itself_and_links_to_it(local: LivePage) -> None:
    own = {"Origin": f"http://127.0.0.1:{local.port}", "Sec-Fetch-Site": "same-origin"}
    assert post(local, "/reset", {}, **own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(local, "/", headers=link)[0] == 200
    assert ask(local, "/snapshot.jpg", headers=link)[0] == 403


def test_forms_of_other_pages_cannot_act(local: LivePage) -> None:
    """Which need no script and may hide where they come from; they cannot send JSON."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        assert ask(local, "/reset", "POST", b"{}", {"Content-Type": kind})[0] == 415
    assert ask(local, "/reset")[0] == 405
    assert not local.figures.session.resets


def test_nobody_may_frame_sniff_or_keep_what_is_answered(local: LivePage) -> None:
    for path in ("/", "/snapshot.jpg", "/nowhere"):
        _, headers, _ = ask(local, path)
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    assert (
        ask(local, "/", headers={"Origin": "http://evil.example"})[1]
        .keys()
        .isdisjoint({"access-control-allow-origin"})
    )


# Greed and garbage


def test_an_address_that_asks_too_often_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUESTS", (50, 1.0))
    with running_page() as page:
        answers = [ask(page, "/policy")[0] for _ in range(70)]
        assert answers[:50] == [200] * 50
        assert 429 in answers
        wait_for(lambda: ask(page, "/policy")[0] == 200, "an answer")


def test_buckets_fill_with_time_and_forget_old_addresses() -> None:
    now = 0.0
    buckets = Buckets(2, 0.5, lambda: now)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    now = 1.9
    assert not buckets.take("a") or buckets.level("a") < 1
    now = 10.0
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    now = 100.0
    passed = 0
    for _ in range(64):  # twice as often as it may
        now += 1.0
        passed += buckets.take("a")
    assert passed >= 32, "haste is no reason to get less"
    for number in range(3 * Buckets.KEPT):
        buckets.take(str(number))
    assert len(buckets.levels) == Buckets.KEPT


def test_a_large_request_is_cut_off(local: LivePage) -> None:
    given = {"Content-Type": "application/json"}
    status, _, _ = ask(local, "/policy", "POST", b"[" * 5000, given)
    assert status == 413
    assert raw(local, b"GET /" + b"a" * 2_000_000)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert ask(local, "/")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET //evil HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
)
def test_garbage_is_refused_and_the_page_goes_on(
    local: LivePage, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    found = raw(local, data)
    assert found == b"" or found.startswith(b"HTTP/1.1 4")
    assert ask(local, "/")[0] == 200
    assert not caplog.records, "a port scanner fills no log"


def test_a_request_that_does_not_come_is_not_waited_for(
    local: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    started = time.monotonic()
    raw(local, b"GET / HTTP/1.1\r\nHost: loc")
    assert time.monotonic() - started < 5
    with Viewer(local) as viewer:
        time.sleep(0.4)
        assert viewer.picture(), "whoever has asked is left alone"


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_nor_is_the_second_one_that_comes_drop_by_drop(
    local: LivePage, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Whether the first was answered or refused."""
    monkeypatch.setattr(server, "REQUEST_S", 0.5)
    head = f"GET /page.css HTTP/1.1\r\nHost: {host}\r\n".encode()
    with socket.create_connection(("127.0.0.1", local.port), timeout=20) as connection:
        connection.sendall(head + b"\r\n" + head)
        assert is_cut_off(connection, b"X: y\r\n")


@pytest.mark.parametrize(("path", "status"), [("/policy", b" 408 "), ("/nowhere", b" 404 ")])
def test_a_body_that_comes_drop_by_drop_is_not_waited_for(
    local: LivePage, monkeypatch: pytest.MonkeyPatch, path: str, status: bytes
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.5)
    monkeypatch.setattr(app, "BODY_S", 0.5)
    head = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", local.port), timeout=20) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}".encode())
        assert status in connection.recv(1000)
        assert is_cut_off(connection, b" ")


def is_cut_off(connection: socket.socket, drop: bytes) -> bool:
    """Whether the page closes a connection over which only this comes, now and then."""
    until = time.monotonic() + 10
    with suppress(ConnectionResetError, BrokenPipeError):
        connection.settimeout(0.1)
        while time.monotonic() < until:
            connection.sendall(drop)
            with suppress(TimeoutError):
                if not connection.recv(65536):
                    return True
        return False
    return True


def test_connections_beyond_a_number_are_closed_at_once() -> None:
    with running_page("http://127.0.0.1:0?viewers=1") as page:
        waiting = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(60)]
        connections = page.server.server.server_state.connections
        wait_for(lambda: 0 < len(connections) <= 2 + server.BESIDE, "an end of it")
        for each in waiting:
            each.close()
        wait_for(lambda: not connections, "their end")
        assert ask(page, "/")[0] == 200


# Addresses


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://", PageAddress()),
        ("http://:9000", PageAddress(port=9000)),
        ("http://0.0.0.0:8080/", PageAddress("0.0.0.0")),
        ("http://[::1]:1234", PageAddress("::1", 1234)),
        (
            "http://gate?viewers=3&rate=7.5&controls=off&name=A.example&name=b",
            PageAddress("gate", viewers=3, rate=7.5, controls=False, names=("a.example", "b")),
        ),
    ],
)
def test_addresses(uri: str, address: PageAddress) -> None:
    assert parse_address(uri) == address


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://localhost:99999", "out of range.*write http://HOST:PORT"),
        ("http://localhost:web", "write http://HOST:PORT"),
        ("http://localhost/stream", "has no path '/stream'"),
        ("http://localhost?viewer=3", "did you mean 'viewers'"),
        ("http://localhost?viewers=0", "must be between 1 and 1000"),
        ("http://localhost?rate=nan", "must be between"),
        ("http://localhost?viewers=3&viewers=4", "given twice"),
        ("http://localhost?controls=maybe", "on or off"),
        ("http://localhost?name=a/b", "no host name"),
        ("https://localhost", "reverse proxy"),
        ("http://no-such-host.invalid:0", "is unknown"),
        ("http://192.0.2.1:0", "no such address; take 0.0.0.0"),
    ],
)
def test_senseless_addresses_are_explained(uri: str, message: str) -> None:
    with pytest.raises(SinkError, match=message):
        open_sink(uri)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(SinkError, match="takes no user and password") as caught:
        open_sink("http://joe:hush@localhost:8080")
    assert "hush" not in str(caught.value)


def test_a_port_in_use_is_said_before_anything_runs() -> None:
    with LivePage("http://127.0.0.1:0", (), ()) as page, pytest.raises(SinkError) as caught:
        open_sink(f"http://127.0.0.1:{page.port}")
    assert f"port {page.port} of 127.0.0.1 is in use by another program" in str(caught.value)


def test_a_port_is_free_again_at_once() -> None:
    with LivePage("http://127.0.0.1:0", (), ()) as page, Viewer(page, "/events") as viewer:
        viewer.event()
        uri = f"http://127.0.0.1:{page.port}"
    with LivePage(uri, (), ()) as again:
        assert ask(again, "/")[0] == 200


def test_links_name_an_address_that_others_can_reach() -> None:
    assert reachable_host("::1") == "[::1]"
    assert reachable_host("gate") == "gate"
    assert reachable_host("0.0.0.0") != "0.0.0.0"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"edge-mdeq\[web\]"):
        open_sink("http://127.0.0.1:0")


def test_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        page = LivePage("http://[::1]:0", (), ())
    except SinkError:
        pytest.skip("no IPv6 here")
    with page, socket.create_connection(("::1", page.port)) as connection:
        page.begin(StandIn(), page.figures.metrics)  # type: ignore[arg-type]
        connection.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
