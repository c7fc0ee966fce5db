"""Graph rewrites, one per file. Each says what it requires, what it does and what it ensures.

They run on the traced pieces, before the composition: what is rewritten once is shared K times.
"""

from mdeq_export.passes.anonymise import Anonymise
from mdeq_export.passes.base import GraphPass, run_passes
from mdeq_export.passes.drop_identity import DropIdentity
from mdeq_export.passes.group_norm import LowerGroupNorm

__all__ = ["Anonymise", "DropIdentity", "GraphPass", "LowerGroupNorm", "run_passes"]
