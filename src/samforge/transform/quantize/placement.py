"""Which operators are quantized and which stay float, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import GraphModule

from samforge.core.recipe import Quantization
from samforge.transform.quantize.patterns import (
    check_choices,
    check_patterns,
    matches,
    path_pattern,
    split,
)
from samforge.transform.quantize.sites import OPERATORS, Site, constant, sites_from_graph

ATTENTION = (
    "a product of two activations, as attention is: above 512 tokens INT8 attention falls to slow "
    "kernels in TensorRT (windows hold 576 tokens, global layers 5184), so it stays half"
)
COMPUTED = "its weight is computed in the graph"
PATCHES = "patch embedding: it reads pixels and is a thousandth of the work"
RULES: tuple[tuple[str, str], ...] = (
    ("*presence*", "presence logit: it decides for the whole image and drifts first"),
    ("*box_head*", "box coordinates need finer steps than 1/256 of their range"),
    ("*box_rpb_embed*", "relative position bias: signed logarithms of distances"),
    ("*ref_point_head*", "position encoding of the queries"),
    ("*scoring*", "class scores: compared with a threshold"),
    ("*class_token.*", "one token an image, which every phrase of it reads: no work, and no room"),
    ("geometry.encoder.boxes_*", "coordinates of exemplar boxes"),
    ("geometry.folded*", "the pixels in exemplar boxes: they say what to look for"),
    ("*mask_embedder*", "its few numbers are multiplied with every pixel of a mask"),
    # The tracker's. Its neck is a twentieth of vision's work, all else less than a fortieth.
    ("neck.*", "the tracker's maps: errors in them add up from frame to frame"),
    ("*hypernetworks*", "its few numbers are multiplied with every pixel of a mask"),
    ("*iou_head*", "expected IoU: it chooses among masks"),
    ("*score_head*", "object score: compared with 0"),
    ("pointer.projection*", "a token of each object, which later frames know it by"),
    ("pointer_time", "times of pointers: no work"),
    ("mask_input.*", "an earlier mask, in few channels"),
    ("downsample", "a mask that is given, in one channel"),
)
"""Module path patterns that always stay float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftFloat:
    """An operator that is not quantized."""

    path: str
    """Module path."""
    operator: str
    """``linear``, ``conv2d``, ``conv_transpose2d`` or ``matmul``."""
    share: float
    """Of the part's multiplications, 0 to 1."""
    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where Q/DQ pairs go in one part."""

    sites: tuple[Site, ...]
    """Operators to quantize, in the order of the graph."""
    left: tuple[LeftFloat, ...]
    """All others."""
    products: int
    """Multiplications of the whole part, for one image and one prompt."""


def placement(graph: GraphModule, part: str, settings: Quantization) -> Placement:
    """Decide for every operator of a part.

    Raises:
        SettingError: A skip pattern matches nothing, or an operator has no such name.
    """
    found = sites_from_graph(graph)
    check_choices("quantization.skip_operators", settings.skip_operators, OPERATORS)
    _check_own_patterns(settings.skip, part, found)
    total = sum(site.products for site in found)
    reasons = {site.node: _reason(graph, site, part, settings) for site in found}
    return Placement(
        sites=tuple(site for site in found if reasons[site.node] is None),
        left=tuple(
            LeftFloat(
                path=site.path,
                operator=site.operator,
                share=site.products / total,
                reason=reason,
            )
            for site in found
            if (reason := reasons[site.node]) is not None
        ),
        products=total,
    )


def _check_own_patterns(patterns: tuple[str, ...], part: str, found: tuple[Site, ...]) -> None:
    """Patterns of other parts, and those that may match in several, are checked by the build."""
    own = [pattern for pattern in patterns if split(pattern)[0] == part]
    check_patterns("quantization.skip", own, {part: tuple(site.path for site in found)})


def _reason(graph: GraphModule, site: Site, part: str, settings: Quantization) -> str | None:
    return next(_reasons(graph, site, part, settings), None)


def _reasons(graph: GraphModule, site: Site, part: str, settings: Quantization) -> Iterator[str]:
    if site.operator == "matmul":
        yield ATTENTION
    if site.weight is None:
        yield COMPUTED
    for pattern in settings.skip:
        own = path_pattern(pattern, part)
        if own is not None and matches(own, site.path):
            yield f"skipped by '{pattern}'"
    if site.operator in settings.skip_operators:
        yield f"operator {site.operator} is skipped"
    if not settings.patch_embedding and _reads_pixels(graph, site):
        yield PATCHES
    for pattern, reason in RULES:
        if fnmatchcase(site.path, pattern):
            yield reason


def _reads_pixels(graph: GraphModule, site: Site) -> bool:
    """The patch embedding by its path, or by the three channels it reads."""
    if fnmatchcase(site.path, "*patch_embed*"):
        return True
    return (
        site.operator == "conv2d"
        and site.weight is not None
        and constant(graph, site.weight).shape[1] == 3
    )
