"""A bundle on a device: frames in, results out. Imports neither torch nor onnx nor the exporter.

source -> latest-frame slot -> session -> sinks
                               backend + carried state
"""

from mdeq_runtime.model import Model
from mdeq_runtime.policies import FixedIterations, UntilDeadline, UntilTolerance
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.session import Session, SessionSettings

__all__ = [
    "FixedIterations",
    "Frame",
    "Model",
    "Result",
    "Session",
    "SessionSettings",
    "UntilDeadline",
    "UntilTolerance",
]
