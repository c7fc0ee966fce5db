"""int8 that knows it is iterated: ranges of the states that solves visit, layer by layer.

``asking`` refuses what will not do, ``observe`` looks at what flows, ``calibrate`` chooses the
layers, ``insert`` rewrites a piece, ``rungs`` composes and writes, ``gate`` judges, ``adding`` does
it for a bundle.
"""

from mdeq_export.quantize.adding import Quantiser
from mdeq_export.quantize.asking import calibration_images, calibration_warnings, check_int8
from mdeq_export.quantize.gate import require_bearable, require_metric

__all__ = [
    "Quantiser",
    "calibration_images",
    "calibration_warnings",
    "check_int8",
    "require_bearable",
    "require_metric",
]
