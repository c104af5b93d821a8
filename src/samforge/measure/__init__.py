"""Latency, fidelity and accuracy of sessions and segmenters."""
