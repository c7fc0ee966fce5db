"""The live page in a real browser: Debian's Chromium without a screen, driven by Playwright."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pages import LABELS, PALETTE, Camera, StandIn, running_page, wait_for
from streams import CALM

from mdeq_runtime import FixedIterations, Model, UntilTolerance

pytest.importorskip("starlette", reason="needs the extra web")
pytest.importorskip("uvicorn", reason="needs the extra web")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.clock,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser; apt-get install chromium"),
]

OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
COUNT_COLOURED = """
id => {
  const canvas = document.querySelectorAll("#charts canvas")[id];
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    count += data[i + 3] > 128 && Math.max(data[i], data[i + 1], data[i + 2])
      - Math.min(data[i], data[i + 1], data[i + 2]) > 60;
  return count;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # nothing but this machine: a page that asks elsewhere would show it here
    switches = ["--disable-gpu", OFFLINE]
    if os.geteuid() == 0:
        switches.append("--no-sandbox")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield opened
        opened.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that reports every error of the page; ``tab.errors`` must be empty in the end."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.set_default_timeout(20_000)
    yield opened
    context.close()


def until(tab: Any, what: str) -> None:
    """Wait for an expression to be true; Playwright's own way is against the page's policy."""
    wait_for(lambda: tab.evaluate(what), what)


def looks(tab: Any, selector: str) -> np.ndarray:
    data = np.frombuffer(tab.locator(selector).screenshot(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(int)


def test_the_stream_moves_and_the_charts_fill(tab: Any) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    with running_page() as page:
        tab.goto(page.url)
        until(tab, "document.querySelector('#picture').naturalWidth > 0")
        first = looks(tab, "#picture")
        wait_for(lambda: np.abs(looks(tab, "#picture") - first).max() > 50, "another picture")
        until(tab, "document.querySelector('#state').textContent === 'running'")
        for index, title in enumerate(("Residual", "Iterations", "Time", "Frames", "Memory")):
            if title != "Time":  # of which the stand-in needs none
                wait_for(lambda at=index: tab.evaluate(COUNT_COLOURED, at) > 20, title)
        assert float(tab.inner_text("#fps")) > 5
        assert tab.inner_text("#residual") == "0.25"
        assert tab.locator(".chart:visible").count() == 5, "no temperatures, no chart of them"
        said = tab.locator("#charts canvas").nth(0).get_attribute("aria-label")
        assert said.startswith("Residual: residual 0.25")
        assert all(url.startswith(page.url) for url in asked)
    assert not tab.errors


def test_names_of_classes_are_text_whatever_they_hold(tab: Any) -> None:
    with running_page() as page:
        tab.goto(page.url)
        tab.wait_for_selector("#classes li")
        assert tab.locator("#classes .label").all_inner_texts() == list(LABELS)
        assert tab.locator("#classes b").count() == 0
        red, green, blue = PALETTE[0]
        colour = tab.locator("#classes .swatch").first.evaluate(
            "each => getComputedStyle(each).backgroundColor"
        )
        assert colour == f"rgb({red}, {green}, {blue})"
    assert not tab.errors


def test_controls_change_how_a_real_model_solves(tab: Any, segmenter_bundle: Path) -> None:
    with (
        Model(segmenter_bundle, CALM, threads=1) as model,
        model.session() as session,
        running_page(session=session, camera=Camera(20, (64, 96))) as page,
    ):
        tab.goto(page.url)
        until(tab, "document.querySelector('#iterations').textContent === '2'")
        tab.fill("#set-iterations", "4")
        tab.click("text=Apply")
        until(tab, "document.querySelector('#iterations').textContent === '4'")
        assert session.settings.policy == FixedIterations(4)
        assert tab.inner_text("#answer") == "done"
        tab.select_option("#policy", "tolerance")
        assert not tab.is_visible("#set-iterations")
        tab.fill("#set-tolerance", "1e-8")
        tab.fill("#set-most", "5")
        tab.click("text=Apply")
        until(tab, "document.querySelector('#iterations').textContent === '5'")
        assert session.settings.policy == UntilTolerance(1e-8, 5)
        tab.select_option("#policy", "deadline")
        tab.fill("#set-deadline", "0")
        tab.evaluate("document.querySelector('#controls').noValidate = true")
        tab.click("text=Apply")
        tab.wait_for_selector("#answer.bad")
        assert "deadline_ms" in tab.inner_text("#answer")
        assert session.settings.policy == UntilTolerance(1e-8, 5)
        before = page.figures.metrics
        assert before is not None
        cold = before.cold["requested"]
        tab.click("text=Start cold")
        wait_for(lambda: before.cold["requested"] == cold + 1, "a cold start")
    assert not tab.errors


def test_a_snapshot_is_a_file_and_metrics_are_a_link(tab: Any) -> None:
    with running_page() as page:
        tab.goto(page.url)
        tab.wait_for_selector("#classes li")
        with tab.expect_download() as download:
            tab.click("text=Snapshot")
        image = cv2.imread(str(download.value.path()))
        assert image is not None
        assert image.shape == (120, 160, 3)
        assert download.value.suggested_filename.endswith(".jpg")
        tab.click("text=Metrics")
        tab.wait_for_url("**/metrics")
        assert "edge_mdeq_frames_total" in tab.inner_text("body")


def test_the_token_is_asked_for_taken_and_kept_out_of_sight(tab: Any) -> None:
    with running_page("http://0.0.0.0:0") as page:
        assert page.token is not None
        address = f"http://127.0.0.1:{page.port}/"
        assert tab.goto(address).status == 401
        tab.fill("input[name=token]", "a wrong one")
        tab.click("text=Open")
        tab.wait_for_selector("text=This is not the page's token.")
        assert tab.locator("#picture").count() == 0
        tab.fill("input[name=token]", page.token)
        tab.click("text=Open")
        until(tab, "document.querySelector('#picture')?.naturalWidth > 0")
        assert tab.url == address
        assert tab.evaluate("document.cookie") == ""
        tab.reload()
        until(tab, "document.querySelector('#state').textContent === 'running'")
    assert not tab.errors


FOREIGN = """<!doctype html><title>foreign</title><body><script>
const base = "BASE", said = {};
const tell = (name, what) => { said[name] = what; };
const image = new Image();
image.onload = () => tell("image", "seen");
image.onerror = () => tell("image", "refused");
image.src = base + "stream.mjpg";
fetch(base + "events").then(() => tell("read", "seen"), () => tell("read", "refused"));
const blind = { mode: "no-cors", method: "POST", body: "{}" };
fetch(base + "reset", blind).then((reply) => tell("act", reply.type), () => tell("act", "refused"));
const json = { method: "POST", body: "{}", headers: { "Content-Type": "application/json" } };
fetch(base + "reset", json).then(() => tell("json", "seen"), () => tell("json", "refused"));
const frame = document.createElement("iframe");
frame.src = base;
document.body.append(frame);
</script></body>"""


def test_a_foreign_page_neither_sees_nor_acts(
    tab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even on this very machine, where there is no token to know."""
    session = StandIn()
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *given: None)
    with running_page(session=session) as page:
        (tmp_path / "index.html").write_text(FOREIGN.replace("BASE", page.url))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            for host in ("localhost", "127.0.0.1"):  # same site or not, never the same origin
                tab.goto(f"http://{host}:{other.server_address[1]}/")
                until(tab, "Object.keys(said).length === 4")
                said = tab.evaluate("said")
                assert said.pop("act") in ("opaque", "refused")
                assert set(said.values()) == {"refused"}
                assert page.publisher.frames.followers == 0
            assert tab.frames[1].locator("#picture").count() == 0
            other.shutdown()
        assert not session.resets
        assert session.settings.policy == FixedIterations()


def test_a_telephone_scrolls_in_one_direction_only(browser: Any) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    )
    with running_page(camera=Camera(15, (480, 640))) as page:
        tab = context.new_page()
        tab.goto(page.url)
        tab.wait_for_selector("#classes li")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        picture = tab.locator("#picture").bounding_box()
        assert picture["width"] > 320
        for button in tab.locator("button:visible, select:visible, input:visible").all():
            assert button.bounding_box()["height"] >= 33
    context.close()


def test_a_tab_that_nobody_looks_at_costs_nothing(tab: Any) -> None:
    hide = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with running_page() as page:
        tab.goto(page.url)
        wait_for(lambda: page.publisher.frames.followers == 1, "a viewer")
        tab.evaluate(hide, True)
        wait_for(lambda: page.publisher.frames.followers == 0, "its departure")
        wait_for(lambda: page.publisher.events.followers == 0, "its departure")
        tab.evaluate(hide, False)
        wait_for(lambda: page.publisher.frames.followers == 1, "its return")
    assert not tab.errors


def test_a_camera_that_stops_and_a_run_that_is_started_again_are_seen(tab: Any) -> None:
    camera = Camera()
    with running_page(camera=camera) as page:
        uri = page.url
        tab.goto(uri)
        until(tab, "document.querySelector('#state').textContent === 'running'")
        camera.going.clear()
        until(tab, "document.querySelector('#state').textContent.startsWith('no frame')")
        camera.going.set()
        until(tab, "document.querySelector('#state').textContent === 'running'")
    until(tab, "document.querySelector('#state').textContent === 'connection lost'")
    with running_page(uri) as again:
        until(tab, "document.querySelector('#state').textContent === 'running'")
        wait_for(lambda: again.publisher.frames.followers == 1, "the picture's return")
    assert not tab.errors
