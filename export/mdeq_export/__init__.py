"""Weights to a bundle: trace the pieces once, compose the unrolled solver, lower it, verify it.

    edge_mdeq.model -pieces-> ONNX pieces -passes-> lowered -compose-> rungs -verify-> bundle

Runs on a workstation; needs the extra ``export``.
"""

from mdeq_export.exporter import ExportSettings, export_bundle

__all__ = ["ExportSettings", "export_bundle"]
