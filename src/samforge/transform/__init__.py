"""Part -> exported program -> ONNX."""

from samforge.transform.inspect import fusions_from_exported, summary_from_file
from samforge.transform.summary import ExternalFile, GraphSummary, WeightBytes

__all__ = [
    "ExternalFile",
    "GraphSummary",
    "WeightBytes",
    "fusions_from_exported",
    "summary_from_file",
]
