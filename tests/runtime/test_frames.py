from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_mdeq.errors import FrameError
from mdeq_runtime.frames import check_frame

BAD = [
    (None, "None"),
    ([[1, 2, 3]], "list"),
    (np.zeros((4, 6, 3), np.uint16), "16-bit"),
    (np.zeros((4, 6), np.uint16), "16-bit"),
    (np.zeros((4, 6, 3), np.float32), "float32"),
    (np.zeros((4, 6), np.uint8), "GRAY2BGR"),
    (np.zeros((4, 6, 1), np.uint8), "GRAY2BGR"),
    (np.zeros((4, 6, 4), np.uint8), "BGRA2BGR"),
    (np.zeros((1, 4, 6, 3), np.uint8), "one frame at a time"),
    (np.zeros((3, 4, 6), np.uint8), "channels last"),
    (np.zeros((0, 6, 3), np.uint8), "no pixels"),
]


def test_a_bgr_frame_passes_unchanged() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert check_frame(image, "frame 0") is image


@pytest.mark.parametrize(("image", "advice"), BAD)
def test_anything_else_is_refused_with_what_to_do(image: object, advice: str) -> None:
    with pytest.raises(FrameError, match=advice) as caught:
        check_frame(image, "frame 3 of clip.mp4")
    message = str(caught.value)
    assert "frame 3 of clip.mp4" in message
    if isinstance(image, np.ndarray):
        assert str(image.shape) in message
        assert str(image.dtype) in message


def test_importing_the_camera_half_imports_neither_opencv_nor_torch() -> None:
    code = (
        "import sys\n"
        "import mdeq_runtime.pipeline, mdeq_runtime.sources, mdeq_runtime.sinks\n"
        "import mdeq_runtime.overlay, mdeq_runtime.frames\n"
        "print([m for m in ('cv2', 'torch', 'onnx', 'mdeq_export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
