"""What people type: sources, their options, and the command line."""

from __future__ import annotations

import os
import random
import shutil
from itertools import pairwise
from typing import Any

from mutate import mutate_text
from target import BUNDLE, Target

__all__ = ["Settings", "Sources"]


class Sources(Target):
    """Source URIs, and options of sources; nothing is asked of other machines."""

    examples = (
        "clip.mp4", "photo.png", "pictures", "pictures/*.png", "pictures/**/*.png",
        "file://photo.png", "file:///etc/hostname", "0", "/dev/video0", "v4l2:///dev/video0",
        "v4l2://3?x=1", "csi://0", "rtsp://user:secret@127.0.0.1:9/stream?a=b#c",
        "rtsps://[::1]:9/x", "http://127.0.0.1:9/stream.mjpg", "https://127.0.0.1:9/a.mp4",
        "gst://videotestsrc ! appsink", "test://", "test://?width=64&height=48&fps=30", "",
        "photo%2epng", "rtsp://127.0.0.1:99999/", "~/clip.mp4",
    )  # fmt: skip

    def prepare(self) -> None:
        import socket

        import cv2
        import numpy as np

        from mdeq_runtime.sources import network

        def resolve(host: Any, *arguments: Any, **more: Any) -> Any:
            if host in ("127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost"):
                return found(host, *arguments, **more)
            raise socket.gaierror(socket.EAI_NONAME, "no names here")

        found, socket.getaddrinfo = socket.getaddrinfo, resolve
        network.open_by_ffmpeg = self.closed  # it would resolve names itself
        os.chdir(self.work)
        picture = np.zeros((48, 64, 3), np.uint8)
        (self.work / "pictures").mkdir()
        for name in ("photo.png", "pictures/a.png", "pictures/b.png"):
            cv2.imwrite(name, picture)
        video = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
        for _ in range(3):
            video.write(picture)
        video.release()

    def closed(self, *arguments: Any) -> Any:
        from edge_mdeq.errors import SourceError

        raise SourceError("nothing answers")

    def case(self, rng: random.Random) -> None:
        from mdeq_runtime.sources import SourceOptions, open_source

        uri = rng.choice(self.examples)
        if rng.random() < 0.9:
            uri = mutate_text(rng, uri)
        if "**" in uri and not uri.startswith("pictures"):
            uri = uri.replace("**", "*")  # all files of this machine are no case
        options: dict[str, Any] = {}
        while rng.random() < 0.3:
            name = rng.choice(("width", "height", "rate", "latency", "loop", "exposure"))
            options[name] = rng.choice((0, 1, -1, 30, 640, 10**9, float("nan"), float("inf")))
        while rng.random() < 0.2:
            name = rng.choice(("codec", "flip", "transport", "backend"))
            options[name] = rng.choice(("h264", "tcp", "ffmpeg", "none", "", "\0", "x" * 99))
        with open_source(uri, SourceOptions(**options)) as source:
            if not source.live:
                source.read()


class Settings(Target):
    """Words of the command line: never a traceback, and no exit code but those documented."""

    examples = (
        "run base.mdeq test:// none --max-frames 1 --threads 1 --iterations 2",
        "run base.mdeq test:// none --max-frames 1 --tolerance 0.5 --max-iterations 3",
        "run base.mdeq test:// none --max-frames 1 --deadline-ms 100 --fit crop",
        "run base.mdeq test://?width=64&height=48 none --max-frames 1 --memory-limit 900MiB",
        "run base.mdeq test:// none --max-frames 1 --cold 2 --warm 1 --target-ms 30 --json",
        "run base.mdeq test:// none --max-frames 1 --colors 255,0,0 --metrics m.jsonl",
        "run base.mdeq test:// none --max-frames 1 --input-width 64 --input-height 48",
        "run base.mdeq test:// none --max-frames 1 --record-hard hard --record-quota 1MiB",
        "run base.mdeq photo.png http://127.0.0.1:0?token=abc&fps=3 --max-frames 1",
        "inspect base.mdeq",
        "engine base.mdeq --compute-capability SM86 --memory-limit 1GiB --cache engines",
        "sign base.mdeq --key key.pem",
        "val base.mdeq --data data --ignore 11 --warm",
    )

    def prepare(self) -> None:
        from typer import main as typer_main

        from edge_mdeq import cli

        commands = typer_main.get_command(cli.app)  # takes longer to make than most cases
        typer_main.get_command = lambda app: commands
        shutil.copytree(self.folder / BUNDLE, self.work / BUNDLE)
        os.chdir(self.work)
        self.call(cli, ["inspect", BUNDLE])

    def call(self, cli: Any, words: list[str]) -> int:
        import sys

        sys.argv = ["edge-mdeq", *words]
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return 0

    def case(self, rng: random.Random) -> None:
        from edge_mdeq import cli

        words = rng.choice(self.examples).split(" ")
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(1, len(words))
            kind = rng.randrange(5)
            if kind == 0 and len(words) > 2:
                del words[at]
            elif kind == 1:
                words[at:at] = [rng.choice(rng.choice(self.examples).split(" "))]
            else:
                words[at] = mutate_text(rng, words[at])
        if any(word.startswith(("display", "rtsp", "udp", "/", "~")) for word in words):
            return  # nothing outside of the folder is written, and no other machine asked
        if any(part in word for word in words for part in ("..", "=/", ":///", "** ")):
            return
        frames = [after for word, after in pairwise(words) if word == "--max-frames"]
        if "run" in words and all(is_number(text) for text in frames):
            words += ["--max-frames", "1"]  # the last one counts; more would just take their time
        code = self.call(cli, [word.replace("\0", "") for word in words])
        assert code in (0, 1, 2), f"exit code {code} of {words}"


def is_number(text: str) -> bool:
    """Whether the command line would take it for one."""
    try:
        int(text)
    except ValueError:
        return False
    return True
