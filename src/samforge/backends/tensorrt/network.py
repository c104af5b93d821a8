"""ONNX -> the library's network, with every error of the parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samforge.backends.tensorrt.library import Library
from samforge.backends.tensorrt.reporting import ERRORS, texts
from samforge.core.errors import EngineError
from samforge.core.session import PartSpec

_MOST_ERRORS = 20


def parsed_network(lib: Library, builder: Any, logger: Any, onnx: Path, spec: PartSpec) -> Any:
    """Parse a graph into a strongly typed network.

    Raises:
        EngineError: The file or one it refers to is missing, operators are not supported, or the
            graph has another interface than the part.
    """
    if not onnx.is_file():
        raise EngineError(f"There is no graph {onnx} to build an engine from.")
    network = builder.create_network(lib.network_flags)
    parser = lib.trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(_refusal(lib, parser, logger, onnx))
    if not network.num_outputs:
        raise EngineError(f"{onnx} is no ONNX graph: it has no outputs. Convert the part again.")
    _check_interface(network, onnx, spec)
    return network


def _refusal(lib: Library, parser: Any, logger: Any, onnx: Path) -> str:
    missing = [
        text.rpartition("Failed to open file: ")[2]
        for text in texts(logger, *ERRORS)
        if "Failed to open file: " in text
    ]
    if missing:
        return (
            f"{onnx} keeps weights in {Path(missing[0]).name}, which is not beside it. "
            "Copy both files together."
        )
    count = int(parser.num_errors)
    problems = [_problem(parser.get_error(index)) for index in range(min(count, _MOST_ERRORS))]
    if count > _MOST_ERRORS:
        problems.append(f"and {count - _MOST_ERRORS} more")
    problems = problems or list(texts(logger, *ERRORS))
    return (
        f"{lib.flavour.title} {lib.version} cannot parse {onnx}. {count} problems: "
        f"{'; '.join(problems)}."
    )


def _problem(error: Any) -> str:
    place = ""
    if error.node() >= 0:
        place = f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): "
    return f"{place}{str(error.desc()).strip()} [{error.code()}]".replace("\n", " ")


def _check_interface(network: Any, onnx: Path, spec: PartSpec) -> None:
    found = (
        [network.get_input(index).name for index in range(network.num_inputs)],
        [network.get_output(index).name for index in range(network.num_outputs)],
    )
    for kind, names, tensors in zip(
        ("inputs", "outputs"), found, (spec.inputs, spec.outputs), strict=True
    ):
        wanted = [tensor.name for tensor in tensors]
        if sorted(names) != sorted(wanted):
            raise EngineError(
                f"{onnx} has the {kind} {', '.join(names)}, and {spec.name} has "
                f"{', '.join(wanted)}. Convert the part again."
            )
