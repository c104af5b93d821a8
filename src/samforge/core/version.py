"""The version of samforge, read by the package build, the manifests and the command line."""

from __future__ import annotations

__version__ = "0.1.0"
