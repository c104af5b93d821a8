"""ONNX graphs with the right names, types and shapes and made-up numbers, and bundles of them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samforge.core.facts import FACTS_KEY, facts_of_manifest
from samforge.core.files import sha256_of
from samforge.core.manifest import MANIFEST_NAME, FileEntry, Manifest, digest_of, manifest_text
from samforge.core.session import PartSpec, TensorSpec

TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
MEBIBYTE = 1 << 20


@lru_cache
def made_up_onnx(part: PartSpec) -> bytes:
    """A graph of exactly one MiB: waves over the elements, shifted by the mean of the inputs."""
    nodes, constants = [], {}

    def constant(name: str, value: Any) -> str:
        constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    means, axes = [], {}
    for tensor in part.inputs:
        as_float = node("Cast", [tensor.name], to=TensorProto.FLOAT)
        means.append(node("ReduceMean", [as_float], keepdims=0))
        for index, axis in enumerate(tensor.shape):
            if isinstance(axis, str):
                axes[axis] = node("Shape", [tensor.name], start=index, end=index + 1)
    shift = node("Mul", [node("Sum", means), constant("stretch", np.float32(1000))])
    for tensor in part.outputs:
        sizes = [
            axes[axis]
            if isinstance(axis, str)
            else constant(f"{tensor.name}_{i}", np.int64([axis]))
            for i, axis in enumerate(tensor.shape)
        ]
        shape = node("Concat", sizes, axis=0)
        count = node("ReduceProd", [shape], keepdims=0)
        places = node("Range", [constant("zero", np.int64(0)), count, constant("one", np.int64(1))])
        angle = node("Add", [node("Cast", [places], to=TensorProto.FLOAT), shift])
        wave = node("Mul", [node("Sin", [angle]), constant("height", np.float32(3))])
        wave = node("Add", [wave, constant("lift", np.float32(1))])
        shaped = node("Reshape", [wave, shape])
        if tensor.dtype == "bool":
            shaped = node("Greater", [shaped, constant("nothing", np.float32(0))])
        nodes.append(helper.make_node("Identity", [shaped], [tensor.name]))
    graph = helper.make_graph(
        nodes,
        part.name,
        [_value(tensor) for tensor in part.inputs],
        [_value(tensor) for tensor in part.outputs],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], tensor.shape)


def stamp(file: Path, manifest: Manifest, part: str, *, size: int | None = MEBIBYTE) -> None:
    """Let an ONNX file say what the manifest says, padded to a size."""
    model = onnx.load(file)
    del model.metadata_props[:]
    notes = {FACTS_KEY: facts_of_manifest(manifest, part).to_text(), "padding": ""}
    if size is not None:
        helper.set_model_props(model, notes | {"padding": "x" * (MEBIBYTE // 2)})
        notes["padding"] = "x" * (MEBIBYTE // 2 + size - model.ByteSize())
        del model.metadata_props[:]
    helper.set_model_props(model, notes)
    file.write_bytes(model.SerializeToString())


def reseal(root: Path, manifest: Manifest) -> Manifest:
    """Write a manifest over the files that are there."""
    (root / MANIFEST_NAME).unlink(missing_ok=True)
    files = {
        path.relative_to(root).as_posix(): FileEntry(
            sha256=sha256_of(path), bytes=path.stat().st_size
        )
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    manifest = replace(manifest, files=files)
    (root / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def forged(table: dict[str, Any]) -> str:
    """A manifest by somebody who knows how digests are made."""
    table["digest"] = digest_of(table)
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"
