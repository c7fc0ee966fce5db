"""The benchmark of recoveries, with a few losses of a real server."""

from __future__ import annotations

import pytest
import recoveries
from rtsp import need_server

pytestmark = pytest.mark.clock


def test_every_loss_is_recovered_from() -> None:
    need_server()
    found = recoveries.recoveries(2, (0.3, 0.6))
    assert len(found) == 2
    assert all(seconds is not None and 0 < seconds < recoveries.GIVE_UP_S for seconds in found)
