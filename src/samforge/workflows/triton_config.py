"""``config.pbtxt`` of a model in a Triton repository.

The message is ``ModelConfig`` of ``protobuf/model_config.proto`` in
https://github.com/triton-inference-server/common, as protobuf's text format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from samforge.core.version import __version__
from samforge.formats import TENSORS_IN, TENSORS_OUT, TensorForm


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonConfig:
    """What Triton has to know of a model."""

    name: str
    """Of the model."""
    digest: str
    """Of the bundle."""
    kind: str
    """``KIND_CPU`` or ``KIND_GPU``."""
    gpus: tuple[int, ...]
    """Which; none for all that the server has."""
    instances: int
    """Processes on each device."""
    response_cache: bool
    """Whether Triton may answer from its cache."""
    parameters: Mapping[str, str]
    """What ``model.py`` reads."""

    def text(self) -> str:
        """The file. Batches are left to samforge: pictures of one call have sizes of their own."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"# Written by samforge {__version__} from the bundle {self.digest}."
        yield f"name: {_quoted(self.name)}"
        yield 'backend: "python"'
        yield "max_batch_size: 0"
        for one in TENSORS_IN:
            yield from _tensor("input", one, optional=True)
        for one in TENSORS_OUT:
            yield from _tensor("output", one)
        yield "instance_group {"
        yield f"  count: {self.instances}"
        yield f"  kind: {self.kind}"
        if self.gpus:
            yield f"  gpus: [ {', '.join(map(str, self.gpus))} ]"
        yield "}"
        if self.response_cache:
            yield "response_cache { enable: true }"
        for key, value in self.parameters.items():
            yield "parameters {"
            yield f"  key: {_quoted(key)}"
            yield f"  value {{ string_value: {_quoted(value)} }}"
            yield "}"


def _tensor(kind: str, form: TensorForm, *, optional: bool = False) -> Iterator[str]:
    # The protocol's names, but for strings.
    name = "TYPE_STRING" if form.datatype == "BYTES" else f"TYPE_{form.datatype}"
    yield f"{kind} {{"
    yield f"  name: {_quoted(form.name)}"
    yield f"  data_type: {name}"
    yield f"  dims: [ {', '.join(map(str, form.shape))} ]"
    if optional:
        yield "  optional: true"
    yield "}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format: JSON's escapes of quotes and controls are among its."""
    return json.dumps(text, ensure_ascii=False)
