"""An RTSP server whose pictures show when they were made; run by the system's Python.

Each picture has the milliseconds of the monotonic clock in it, as 32 black or white squares: who
receives it on the same machine knows how old it is. Commands on stdin: ``size WIDTH HEIGHT``.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import numpy as np

SIDE, COLUMNS, BITS = 16, 8, 32  # of the squares


def stamp(image: np.ndarray, ms: int) -> None:
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        square = np.s_[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        image[square] = 235 if ms >> bit & 1 else 20


def read_stamp(image: np.ndarray) -> int:
    ms = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        middle = np.s_[row * SIDE + 4 : row * SIDE + 12, column * SIDE + 4 : column * SIDE + 12]
        ms |= int(image[middle].mean() > 128) << bit
    return ms


class Camera:
    """Pushes pictures into each client's pipeline."""

    def __init__(self, width: int, height: int, fps: float) -> None:
        self.size, self.fps = (height, width), fps

    def attach(self, factory: object, media: object) -> None:
        source = media.get_element().get_child_by_name("src")  # type: ignore[attr-defined]
        over = threading.Event()
        media.connect("unprepared", lambda media: over.set())  # type: ignore[attr-defined]
        threading.Thread(target=self.push, args=(source, over), daemon=True).start()

    def push(self, source: object, over: threading.Event) -> None:
        from gi.repository import Gst

        sent, due, index = None, time.monotonic(), 0
        while not over.is_set():
            if source.get_state(0)[1] != Gst.State.PLAYING:  # type: ignore[attr-defined]
                over.wait(0.005)  # no clock yet: a stamp would lie in the future
                continue
            size = self.size
            if size != sent:
                height, width = sent = size
                text = f"video/x-raw,format=BGR,width={width},height={height}"
                caps = Gst.Caps.from_string(f"{text},framerate={int(self.fps)}/1")
                source.set_property("caps", caps)  # type: ignore[attr-defined]
            image = np.full((*size, 3), 90, np.uint8)
            left = 8 * index % (size[1] - 40)
            image[80:140, left : left + 40] = (30, 160, 220)
            stamp(image, int(1000 * time.monotonic()) & 0xFFFFFFFF)
            buffer = Gst.Buffer.new_wrapped(image.tobytes())
            if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:  # type: ignore[attr-defined]
                over.wait(0.01)  # a pipeline that is just starting flushes; one that ends does, too
                continue
            index += 1
            due = max(due + 1 / self.fps, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))


def serve(args: argparse.Namespace) -> None:
    import gi

    for library in ("Gst", "GstRtsp", "GstRtspServer"):
        gi.require_version(library, "1.0")
    from gi.repository import GLib, Gst, GstRtsp, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(args.port))
    factory = GstRtspServer.RTSPMediaFactory()
    encoder = {
        "h264": "x264enc tune=zerolatency speed-preset=ultrafast threads=1 key-int-max=15 "
        "bitrate=2000 ! video/x-h264,profile=baseline ! rtph264pay config-interval=-1 name=pay0 "
        "pt=96",
        "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
    }[args.codec]
    source = "appsrc name=src is-live=true format=time do-timestamp=true block=true max-bytes=1"
    factory.set_launch(f"( {source} ! videoconvert ! video/x-raw,format=I420 ! {encoder} )")
    factory.set_latency(0)
    camera = Camera(args.width, args.height, args.fps)
    factory.connect("media-configure", camera.attach)
    if args.password:
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth.add_digest("joe", args.password, token)
        server.set_auth(auth)
        role = "viewer,media.factory.access=true,media.factory.construct=true"
        factory.add_role_from_structure(Gst.Structure.new_from_string(role))
    server.get_mount_points().add_factory("/stream", factory)
    if not server.attach(None):
        sys.exit("the port is taken")
    print("ready", flush=True)
    threading.Thread(target=obey, args=(camera,), daemon=True).start()
    GLib.MainLoop().run()


def obey(camera: Camera) -> None:
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "size":
            camera.size = (int(numbers[1]), int(numbers[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--password", default="")
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--fps", type=float, default=15.0)
    serve(parser.parse_args())
