"""Part -> exported program -> ONNX."""

from samforge.transform.inspect import summary_from_file
from samforge.transform.summary import ExternalFile, GraphSummary, WeightBytes

__all__ = ["ExternalFile", "GraphSummary", "WeightBytes", "summary_from_file"]
