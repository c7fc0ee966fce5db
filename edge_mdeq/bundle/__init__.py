"""The deployment bundle: the contract between export and runtime. Torch-free, numpy-free."""

from edge_mdeq.bundle.manifest import (
    BUNDLE_SUFFIX,
    SCHEMA,
    FileEntry,
    GraphCost,
    InputSpec,
    Manifest,
    OutputSpec,
    Parts,
    Profile,
    Rung,
    SolverSpec,
    Step,
    TensorSpec,
    WeightsFile,
)
from edge_mdeq.bundle.reader import Bundle, open_bundle
from edge_mdeq.bundle.verification import RungParity, SolverCurve, Tolerance, Verification
from edge_mdeq.bundle.writer import writing_bundle

__all__ = [
    "BUNDLE_SUFFIX",
    "SCHEMA",
    "Bundle",
    "FileEntry",
    "GraphCost",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "Parts",
    "Profile",
    "Rung",
    "RungParity",
    "SolverCurve",
    "SolverSpec",
    "Step",
    "TensorSpec",
    "Tolerance",
    "Verification",
    "WeightsFile",
    "open_bundle",
    "writing_bundle",
]
