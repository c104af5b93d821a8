"""Detections as plain values for an answer: RLE by default, polygons or PNG where asked for."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from samforge.core.detections import Detections
from samforge.formats.outlines import polygons_from_crop

MaskFormat: TypeAlias = Literal["rle", "polygons", "png", "none"]
FORMATS: tuple[str, ...] = get_args(MaskFormat)


def packed(detections: Detections, masks: MaskFormat = "rle") -> list[dict[str, Any]]:
    """One dictionary a detection: ``label``, ``score``, ``box_xyxy``, ``area``, ``id``, its mask.

    Args:
        detections: What was found.
        masks: ``rle`` gives COCO's run lengths (``size``, ``counts``), ``polygons`` the parts as
            ``outline`` and ``holes`` (x, y, x, y, …), ``png`` a picture of the mask's box alone
            with its place, ``none`` no masks.
    """
    rows = detections.to_dict()["detections"]
    for index, row in enumerate(rows):
        if masks == "rle":
            row["rle"] = detections.masks.rle(index)
        elif masks == "png":
            row["png"] = _png(detections, index)
        elif masks == "polygons":
            row["polygons"] = _polygons(detections, index)
    return list(rows)


def _png(detections: Detections, index: int) -> dict[str, Any]:
    """The mask inside its box, and where that lies: a whole picture would be mostly nothing."""
    crop, (top, left) = detections.masks.crop(index)
    if crop.size == 0:
        return {"left": 0, "top": 0, "width": 0, "height": 0, "data": ""}
    stream = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8) * 255).convert("1").save(stream, "PNG")
    return {
        "left": left,
        "top": top,
        "width": crop.shape[1],
        "height": crop.shape[0],
        "data": base64.b64encode(stream.getvalue()).decode("ascii"),
    }


def _polygons(detections: Detections, index: int) -> list[dict[str, Any]]:
    outline = polygons_from_crop(*detections.masks.crop(index))
    return [
        {"outline": ring.ravel().tolist(), "holes": [hole.ravel().tolist() for hole in holes]}
        for ring, holes in outline.parts
    ]
