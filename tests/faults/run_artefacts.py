"""What a run writes, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from artefact import Artefact

__all__ = ["Hard", "Lines", "Masks", "Newest", "PlainVideo", "Video"]


class Recording(Artefact):
    """What ``run`` writes frame by frame; the versions differ in their number of frames.

    ``read`` takes the beginning of the new one for the new one: a run that is killed has no end.
    """

    frames: ClassVar = {"old": 3, "new": 8}
    size = (96, 128)
    seconds = 0.5  # from frame to frame

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks import open_sink

        return open_sink(folder / self.place, fps=2.0, labels=("sky", "road"))

    def write(self, folder: Path, version: str) -> None:
        import numpy as np

        from mdeq_runtime.results import Frame, Result

        shade = {"old": 60, "new": 200}[version]
        mask = np.full(self.size, version == "new", np.uint8)
        with self.sink(folder) as sink:
            for index in range(self.frames[version]):
                picture = np.full((*self.size, 3), shade, np.uint8)
                result = Result(mask, None, shade, 0.5, False, True, "", index=index)
                sink.write(Frame(picture, index, index * self.seconds), result)


class Video(Recording):
    """Fragments of an .mp4: what plays is a whole number of them."""

    place = "video.mp4"

    def read(self, folder: Path) -> str | None:
        import cv2

        path = folder / self.place
        if not path.exists():
            return None
        video, shades = cv2.VideoCapture(str(path)), []
        while True:
            done, image = video.read()
            if not done:
                break
            shades.append(float(image[:32].mean()))  # hardly any of the figures are there
        assert shades, "nothing plays"
        assert max(shades) - min(shades) < 5, "frames of both"
        version = "new" if shades[0] > 95 else "old"
        assert len(shades) <= self.frames[version]
        if version == "old" or not path.name.endswith(".mp4"):
            assert len(shades) == self.frames[version]
        return version


class PlainVideo(Video):
    """An .avi, which is renamed when it is finished."""

    place = "video.avi"


class Lines(Recording):
    """JSON lines, begun anew by the first result; whole ones, in order, from then on."""

    place = "results.jsonl"

    def read(self, folder: Path) -> str | None:
        path = folder / self.place
        if not path.exists():
            return None
        text = path.read_text()
        assert not text or text.endswith("\n"), "a torn line"
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["index"] for line in lines] == list(range(len(lines)))
        kinds = {line["iterations"] for line in lines}
        assert len(kinds) <= 1
        version = "old" if kinds == {60} else "new"
        assert version == "new" or len(lines) == self.frames["old"]
        return version


class Hard(Recording):
    """Pictures with a JSON each; those of the old version stay."""

    place = "hard"
    frames: ClassVar = {"old": 1, "new": 2}
    seconds = 2.0

    def load(self) -> None:
        super().load()

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks.hard import HardFrames

        return HardFrames(folder / self.place, 10**8)

    def read(self, folder: Path) -> str | None:
        import cv2

        place = folder / self.place
        if not place.exists():
            return None
        kinds = set()
        for text in place.glob("*.json"):
            kinds.add(json.loads(text.read_text())["iterations"])
            assert cv2.imread(str(text.with_suffix(".png"))) is not None
        for picture in place.glob("[!.]*.png"):
            assert cv2.imread(str(picture)) is not None
        return "new" if 200 in kinds else "old" if kinds else None


class Newest(Recording):
    """One picture, which each frame replaces."""

    place = "newest.png"

    def read(self, folder: Path) -> str | None:
        import cv2

        path = folder / self.place
        if not path.exists():
            return None
        image = cv2.imread(str(path))
        assert image is not None, "half a picture"
        return "new" if image[:32].mean() > 95 else "old"


class Masks(Recording):
    """A picture of class indices per frame."""

    place = "masks"

    def sink(self, folder: Path) -> Any:
        from mdeq_runtime.sinks import open_sink

        return open_sink(f"masks://{folder / self.place}")

    def read(self, folder: Path) -> str | None:
        import cv2

        masks = [cv2.imread(str(path)) for path in (folder / self.place).glob("*.png")]
        assert all(mask is not None for mask in masks), "half a picture"
        kinds = {int(mask.max()) for mask in masks}
        return "new" if 1 in kinds else "old" if kinds else None
