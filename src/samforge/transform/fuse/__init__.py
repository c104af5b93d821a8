"""Exported program -> exported program with fewer, larger operators."""

from samforge.transform.fuse.result import FusedProgram, Fusion, FusionResult
from samforge.transform.fuse.sequence import FUSIONS, fuse

__all__ = ["FUSIONS", "FusedProgram", "Fusion", "FusionResult", "fuse"]
