"""TensorRT and TensorRT for RTX: ONNX -> engine -> session.

Two thin backends, ``proper`` and ``rtx``, over the same modules. Nothing here imports either
library before it is asked for, and nothing imports torch: a device needs the runtime and a driver.
"""
