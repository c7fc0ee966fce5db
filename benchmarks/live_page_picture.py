"""The picture of the live page in the README: the sample model on a street that is only drawn.

    python benchmarks/live_page_picture.py [--out docs/images/live_page.png] [--seconds 60]

Needs Playwright and Chromium. Nothing in the picture is of anybody's footage.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from drawn_street import Street

from mdeq_runtime import Model, UntilTolerance
from mdeq_runtime.pipeline import run
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.web import LivePage


def shoot(page: LivePage, out: Path, size: tuple[int, int], chromium: str) -> None:
    """A picture of the page as a browser shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme="light")
        tab.goto(page.url)
        tab.wait_for_selector("#classes li")
        time.sleep(5)
        tab.screenshot(path=out)
        browser.close()


def main() -> None:
    """Let the sample model drive for a while, then take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("samples/bundles/camvid-nano.mdeq"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/live_page.png"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with Model(args.bundle, threads=1) as model, model.session() as session:
        page = open_sink("http://127.0.0.1:0", labels=model.labels, palette=model.manifest.palette)
        assert isinstance(page, LivePage)
        stop = threading.Event()
        arguments = (session, Street(), [page])
        thread = threading.Thread(target=run, args=arguments, kwargs={"stop": stop})
        thread.start()
        try:
            time.sleep(args.seconds / 2)
            session.use(UntilTolerance(0.02, 8))  # so that the charts show what that changes
            time.sleep(args.seconds / 2)
            shoot(page, args.out, (1280, 920), args.chromium)
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main()
