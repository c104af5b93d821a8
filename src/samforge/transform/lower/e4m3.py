"""The FP8 type of weights and activations."""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest finite E4M3 value (OCP 8-bit floating point specification, 2023)."""
