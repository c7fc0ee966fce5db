"""What the rungs of a bundle take on this machine: time, memory, and the residual they reach.

``benchmark`` measures. The statistics are of use to whoever compares something else as well.
"""

from __future__ import annotations

from mdeq_runtime.bench.benchmark import BenchReport, BenchSettings, Row, benchmark

__all__ = ["BenchReport", "BenchSettings", "Row", "benchmark"]
