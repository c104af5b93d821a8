"""Bundles in NVIDIA Triton: what ``model.py`` of an exported model calls."""

from samforge.apps.triton.model import TritonBundle

__all__ = ["TritonBundle"]
