"""The samples are scripts: their folder goes onto the path, and that of these tests' helpers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
sys.path.insert(0, str(Path(__file__).parent))
