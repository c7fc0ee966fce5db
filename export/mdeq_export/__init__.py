"""Weights to a bundle: trace the pieces once, compose the unrolled solver, lower it, verify it.

    edge_mdeq.model -pieces-> ONNX pieces -passes-> lowered -compose-> rungs -verify-> bundle

Tracing needs torch, and runs on a workstation; composing further rungs of a bundle needs onnx only,
so that nothing is imported before it is used. Needs the extra ``export``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdeq_export.exporter import ExportSettings, export_bundle
    from mdeq_export.unroll import unroll_bundle

__all__ = ["ExportSettings", "export_bundle", "unroll_bundle"]

HOMES = {"ExportSettings": "exporter", "export_bundle": "exporter", "unroll_bundle": "unroll"}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    import importlib

    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
