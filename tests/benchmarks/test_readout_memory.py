"""What the tiles of a readout are for: in ONNX Runtime its peak is a few times the states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import readout_memory as bench

from edge_mdeq.registry import lookup
from mdeq_export.readouts import FLOOR
from mdeq_runtime.memory import resident_bytes

ENTRY, HEIGHT, WIDTH = "cityscapes-small", 512, 1024


@pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only")
def test_a_tile_takes_the_memory_that_the_last_one_left(tmp_path: Path) -> None:
    """Three tensors of a tile's hidden layer at a time, and the states in another order."""
    graphs, tiles = bench.export(ENTRY, HEIGHT, WIDTH, tmp_path, skip=(bench.PLAIN, bench.ONE))
    shapes = lookup(ENTRY).model.state_shapes(1, HEIGHT, WIDTH)
    limit = max(FLOOR, sum(4 * int(np.prod(shape)) for shape in shapes))
    assert tiles >= 8
    assert limit < bench.child("peak", [graphs[bench.TILED]]) < 5 * limit
