"""edge-mdeq: Multiscale Deep Equilibrium Models from GPU-trained weights to a camera on a device.

    >>> import edge_mdeq
    >>> model = edge_mdeq.load("camvid-nano.mdeq")      # torch-free
    >>> result = model(frame)                           # one BGR frame

Importing this package imports nothing heavy; each function imports what it needs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edge_mdeq.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from edge_mdeq.bundle import Manifest
    from mdeq_export import ExportSettings
    from mdeq_runtime import Model
    from mdeq_runtime.val import ValReport

__all__ = ["__version__", "export", "load", "val"]

# From 1.29 on ONNX Runtime reports its use to its maker as soon as it is imported. A device in the
# field reports to nobody; whoever wants it to sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


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


def val(bundle: str | Path, data: str | Path, **settings: object) -> ValReport:
    """Score a bundle's graphs on a labelled dataset's folder; torch is not needed.

        >>> report = edge_mdeq.val("camvid-nano.mdeq", "CamVid", ignore=[11], warm=True)
        >>> [(score.start, score.evaluations, score.value) for score in report.scores]

    Args:
        bundle: ``NAME.mdeq``.
        data: the folder.
        settings: those of ``mdeq_runtime.val.ValSettings``.

    Raises:
        EdgeMdeqError: see ``mdeq_runtime.val.validate``.
    """
    from pathlib import Path

    from mdeq_runtime.val import ValSettings, validate

    return validate(Path(bundle), Path(data), ValSettings(**settings))  # type: ignore[arg-type]
