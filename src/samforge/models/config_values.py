"""Values of a ``config.json`` held against what any model can have, before anything is made of it.

transformers checks types and little else: a million layers are constructed until memory ends, and
zero heads become a ZeroDivisionError deep in a constructor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from samforge.core.errors import CheckpointError

_DEEPEST = 16
_ANY = (-(2**31), 2**31 - 1)
_RANGES: tuple[tuple[re.Pattern[str], tuple[float, float]], ...] = tuple(
    (re.compile(pattern), span)
    for pattern, span in (
        (r"(^|_)(num_hidden_layers|num_layers|layers|depth|num_upsampling_stages)$", (1, 1024)),
        (r"num_(attention_|key_value_)?heads$", (1, 1024)),
        (r"(hidden_size|intermediate_size|projection_dim|_dim|num_channels)$", (1, 1 << 16)),
        (r"(image_size|patch_size|roi_size)$", (1, 1 << 14)),
        (r"^window_size$", (0, 1 << 14)),
        (r"num_(queries|labels|register_tokens)$", (0, 1 << 16)),
        (r"^vocab_size$", (1, 1 << 24)),
        (r"^max_position_embeddings$", (1, 1 << 16)),
        (r"^backbone_feature_sizes$", (1, 1 << 16)),
        (r"^scale_factors$", (2**-6, 64)),
        (r"_eps$", (0, 1)),
        (r"(dropout|drop_path_rate|initializer_range)$", (0, 10)),
    )
)
"""Least and greatest value by the name of the setting, far beyond every published model."""


def check_values(settings: Mapping[str, Any], place: str) -> None:
    """Refuse a configuration with a value that no model has.

    Args:
        settings: The table, nested as the file has it.
        place: Where it stands, for the message.

    Raises:
        CheckpointError: Names the first value.
    """
    for path, value in _numbers(settings, ""):
        name = path.rsplit(".", 1)[-1].split("[")[0]
        low, high = next((span for pattern, span in _RANGES if pattern.search(name)), _ANY)
        if not low <= value <= high:  # written so that NaN fails too
            shown = f"{value:g}" if abs(value) < 1e15 else "a number beyond 1e15"
            raise CheckpointError(
                f"{place} is no configuration of a model: {path} is {shown}, and lies from "
                f"{low:g} to {high:g} in all there are. Download it again."
            )


def check_heads(config: Any, place: str, *, name: str = "") -> None:
    """Make sure that heads share the width of every attention, in a configuration and its parts.

    Args:
        config: Of transformers, its defaults filled in.
        place: Where it stands, for the message.
        name: Of the part, for the message.

    Raises:
        CheckpointError: They do not.
    """
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", 0)
    if isinstance(heads, int) and isinstance(width, int) and (heads < 1 or width % heads):
        raise CheckpointError(
            f"{place} is no configuration of a model: {name or 'it'} has {heads} attention heads "
            f"for {width} channels, which they cannot share evenly. Download it again."
        )
    for key, value in vars(config).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            check_heads(value, place, name=f"{name}.{key}" if name else key)


def _numbers(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, float]]:
    """Every number of a table with its path; what is nested without end counts as infinite."""
    if depth > _DEEPEST:
        yield path, math.inf
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
