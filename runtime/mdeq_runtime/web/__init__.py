"""The live page: annotated frames and how well they converge, in a browser.

The pipeline's thread only leaves its newest result here. One thread encodes it, once for all
viewers, and one serves them:

``LivePage.write -> Publisher (draws, encodes, gathers figures) -> Broadcast -> viewers``

Starlette and uvicorn, which the extra ``web`` brings, are imported when a page is opened.
"""

from mdeq_runtime.web.page import LivePage

__all__ = ["LivePage"]
