"""Part -> exported program -> ONNX."""
