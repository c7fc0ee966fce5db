"""edge-mdeq: Multiscale Deep Equilibrium Models from GPU-trained weights to a camera on a device.

    >>> import edge_mdeq
    >>> model = edge_mdeq.load("camvid-nano.mdeq")      # torch-free
    >>> result = model(frame)                           # one BGR frame

Importing this package imports nothing heavy; each function imports what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_mdeq.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from edge_mdeq.bundle import Manifest
    from mdeq_export import ExportSettings
    from mdeq_runtime import Model

__all__ = ["__version__", "export", "load"]


def export(
    weights: str | Path, out: str | Path, settings: ExportSettings | None = None
) -> Manifest:
    """Export weights to a verified bundle; see ``mdeq_export.export_bundle``.

    Raises:
        MissingExtraError: the extra ``export`` is not installed.
    """
    from pathlib import Path

    from edge_mdeq.errors import require

    require("torch", "export", "exporting a model")
    require("onnx_ir", "export", "exporting a model")
    from mdeq_export import export_bundle

    return export_bundle(Path(weights), Path(out), settings)


def load(path: str | Path, **settings: object) -> Model:
    """Open a bundle for inference on this device; see ``mdeq_runtime.Model``."""
    from pathlib import Path

    from mdeq_runtime import Model

    return Model(Path(path), **settings)  # type: ignore[arg-type]
