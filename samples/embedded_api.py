"""The runtime inside a program of your own: one image, then a loop that you drive.

python samples/embedded_api.py camvid-nano.mdeq photo.jpg
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

import edge_mdeq
from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime import FixedIterations, SessionSettings


def main(bundle: str, photo: str) -> None:
    """Answer one photo from a cold start, then pan across it as if it were a stream."""
    image = cv2.imread(photo)
    if image is None:
        sys.exit(f"{photo} cannot be read as an image")
    settings = SessionSettings(FixedIterations(2, cold=8), confidence=True)
    with edge_mdeq.load(bundle, settings=settings) as model:
        result = model(image)
        mask = result.output
        shares = np.bincount(mask.ravel(), minlength=len(model.labels)) / mask.size
        for index in np.argsort(-shares)[:3]:
            print(f"{model.labels[index]}: {shares[index]:.0%} of the picture")
        assert result.confidence is not None  # it was asked for above
        print(f"mean confidence {result.confidence.mean():.2f}, residual {result.residual:.4f}")

        with model.session() as session:  # one per stream; it carries the equilibrium
            for shift in range(0, 40, 4):
                answer = session(np.roll(image, shift, axis=1))
                print(
                    f"shifted by {shift}: {answer.iterations} evaluations, residual "
                    f"{answer.residual:.4f}, {answer.reason or 'warm'}"
                )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except EdgeMdeqError as error:
        sys.exit(f"error: {error}")
