"""Exported program -> ONNX."""
