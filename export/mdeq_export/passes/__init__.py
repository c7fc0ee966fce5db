"""Graph rewrites, one per file. Each says what it requires, what it does and what it ensures.

They run on the traced pieces, before the composition: what is rewritten once is shared K times.
"""

from mdeq_export.passes.anonymise import Anonymise
from mdeq_export.passes.base import GraphPass, run_passes
from mdeq_export.passes.drop_identity import DropIdentity
from mdeq_export.passes.exact_norm import ExactNorm
from mdeq_export.passes.group_norm import LowerGroupNorm
from mdeq_export.passes.half import Half
from mdeq_export.passes.hold_rounding import HoldRounding
from mdeq_export.passes.join_affine import JoinAffine
from mdeq_export.passes.known_constants import KnownConstants
from mdeq_export.passes.opset import SetOpset
from mdeq_export.passes.sum_upsampled import SumUpsampled
from mdeq_export.passes.uint8 import FloatBeforeUint8

__all__ = [
    "Anonymise",
    "DropIdentity",
    "ExactNorm",
    "FloatBeforeUint8",
    "GraphPass",
    "Half",
    "HoldRounding",
    "JoinAffine",
    "KnownConstants",
    "LowerGroupNorm",
    "SetOpset",
    "SumUpsampled",
    "run_passes",
]
