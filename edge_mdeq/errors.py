"""Every exception that edge-mdeq raises on purpose.

    EdgeMdeqError
    ├── ConfigError          a model config, recipe or setting that makes no sense
    ├── WeightsError         a weights file that is missing, truncated or of another model
    ├── DataError            a dataset folder, image or mask that cannot be used
    ├── TrainingError        a training run that cannot go on
    ├── ExportError          an export that could not be done
    │   └── ParityError      ... or whose graphs do not compute what the model computes
    ├── BundleError          a bundle that is missing, altered, incomplete or too new
    ├── SourceError          a camera or file that cannot be opened or read
    ├── SinkError            an output that cannot be written
    ├── FrameError           a frame of a type or shape that a model cannot take
    ├── DeviceError          a GPU that is absent, or whose software does not do what is asked
    │   └── EngineError      ... or an engine that is missing, of another device, or not to be built
    ├── MemoryLimitError     a model that does not fit into its memory limit, or outgrew it
    ├── SessionError         a session that was closed, or asked for what its bundle lacks
    └── MissingExtraError    a feature whose optional dependency is not installed

Each message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EdgeMdeqError",
    "EngineError",
    "ExportError",
    "FrameError",
    "MemoryLimitError",
    "MissingExtraError",
    "ParityError",
    "SessionError",
    "SinkError",
    "SourceError",
    "TrainingError",
    "WeightsError",
    "require",
]


class EdgeMdeqError(Exception):
    """Base of all errors below; catching it catches whatever this project raises on purpose."""


class ConfigError(EdgeMdeqError, ValueError):
    """A model config, a recipe or a setting that makes no sense."""


class WeightsError(EdgeMdeqError):
    """A weights file that is missing, truncated, or belongs to another model."""


class DataError(EdgeMdeqError):
    """A dataset folder, an image or a mask that cannot be used."""


class TrainingError(EdgeMdeqError):
    """A training run that cannot go on: it diverged, or its folder cannot be written to."""


class ExportError(EdgeMdeqError):
    """An export that could not be done."""


class ParityError(ExportError):
    """An export whose graphs do not compute what the torch model computes."""


class ConvergenceError(ExportError):
    """Weights whose iteration does not converge as far as was asked for."""


class BundleError(EdgeMdeqError):
    """A bundle that is missing, altered, incomplete or written by a newer version."""


class SourceError(EdgeMdeqError):
    """A camera or a file that cannot be opened or read."""


class SinkError(EdgeMdeqError):
    """An output that cannot be written."""


class FrameError(EdgeMdeqError, ValueError):
    """A frame of a type or a shape that no model can take."""


class MemoryLimitError(EdgeMdeqError):
    """A model that does not fit into its memory limit, or outgrew it."""


class DeviceError(EdgeMdeqError):
    """A GPU that is absent, or whose software is missing or does not do what is asked."""


class EngineError(DeviceError):
    """A TensorRT engine that is missing, belongs to another device, or cannot be built."""


class SessionError(EdgeMdeqError):
    """A session that was closed, or that was asked for what its bundle does not hold."""


class MissingExtraError(EdgeMdeqError, ImportError):
    """A feature whose optional dependency is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: the module to import, such as ``"cv2"``.
        extra: the extra of ``edge-mdeq`` that installs it.
        purpose: what needs it, as the subject of a sentence ("reading video files").

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # how compiled modules pass on Ctrl-C
            raise error.__cause__ from None
        raise MissingExtraError(
            f"{purpose} needs the module {module!r}, which could not be imported ({error}); "
            f"install it with: pip install 'edge-mdeq[{extra}]'"
        ) from error
