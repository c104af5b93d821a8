"""CVAT's auto-annotation: functions that CVAT's SDK and command line call on each frame.

The interfaces are ``DetectionFunction`` and ``InteractionFunction`` of ``cvat_sdk.auto_annotation``
(2.80). ``cvat-cli`` finds :func:`create` in this module. Nothing here needs a CVAT server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from samforge.assembly import load
from samforge.core.capabilities import POINTS
from samforge.core.detections import Detections
from samforge.core.errors import MissingExtra, PromptError, SettingError
from samforge.formats.rings import rings_from_crop
from samforge.runtime import EncodedImage, ObjectPrompt, Segmenter

THRESHOLD = 0.5
"""Detections score above it where CVAT names no other."""


class Detection:
    """Finds labels in frames by their phrases: a ``DetectionFunction``."""

    def __init__(self, segmenter: Segmenter, labels: Mapping[str, Sequence[str]]) -> None:
        """Keep a segmenter.

        Args:
            segmenter: What finds.
            labels: The phrases of each label; labels are matched with a task's by their names.

        Raises:
            MissingExtra: cvat-sdk is not installed.
            SettingError: There is no label, or one phrase has two.
        """
        self._cvat = _sdk("cvat_sdk.auto_annotation")
        self._segmenter = segmenter
        self._number = {
            phrase: number
            for number, phrases in enumerate(labels.values(), 1)
            for phrase in phrases
        }
        count = sum(map(len, labels.values()))
        if count == 0 or len(self._number) != count:
            raise SettingError(
                f"The labels have {count} phrases, {len(self._number)} of them different. Give at "
                "least one, and each to one label."
            )
        self.spec = self._cvat.DetectionFunctionSpec(
            labels=[self._cvat.label_spec(name, i, type="any") for i, name in enumerate(labels, 1)]
        )

    def detect(self, context: Any, image: Any) -> list[Any]:
        """Masks, or polygons where CVAT asks for them, of everything that was found.

        Args:
            context: A ``DetectionFunctionContext``.
            image: A Pillow image.

        Returns:
            ``LabeledShapeRequest`` each; parts of one object share a group.
        """
        given = context.conf_threshold
        found = self._segmenter.predict(
            image,
            text=tuple(self._number),
            threshold=THRESHOLD if given is None else float(given),
        )
        shapes: list[Any] = []
        for index in range(len(found)):
            number = self._number[found.labels[index]]
            if not context.conv_mask_to_poly:
                shapes.append(self._cvat.mask(number, _mask(found, index)))
                continue
            rings = rings_from_crop(*found.masks.crop(index))
            group = {"group": index + 1} if len(rings) > 1 else {}
            shapes += [self._cvat.polygon(number, ring.ravel().tolist(), **group) for ring in rings]
        return shapes


class Interaction:
    """Segments what an annotator clicks on: an ``InteractionFunction``."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Keep a segmenter.

        Raises:
            MissingExtra: cvat-sdk is not installed, or has no interaction functions.
            SettingError: The bundle takes no clicks.
        """
        self._cvat = _sdk("cvat_sdk.auto_annotation")
        self._values = _sdk("cvat_sdk.models")
        if not hasattr(self._cvat, "InteractionFunctionSpec"):
            raise MissingExtra("cvat-sdk 2.80 or newer", "cvat")
        if not POINTS.among(segmenter.parts):
            raise SettingError(
                f"The bundle has the parts {', '.join(segmenter.parts)} and takes no clicks. "
                "Build one with --tracker."
            )
        self._segmenter = segmenter
        self.spec = self._cvat.InteractionFunctionSpec(
            min_pos_points=0, min_neg_points=0, min_bounding_boxes=0
        )

    def preprocess_image(self, context: Any, image: Any) -> EncodedImage:  # noqa: ARG002
        """Encode a frame; every click on it is answered from that.

        Args:
            context: Holds nothing.
            image: A Pillow image.
        """
        return self._segmenter.encode(image)

    def detect(self, context: Any, pp_image: EncodedImage, prompts: Any) -> list[Any]:  # noqa: ARG002
        """The mask of one object.

        Args:
            context: Holds nothing.
            pp_image: From :meth:`preprocess_image`.
            prompts: ``InteractionPrompts``: points on it and beside it, a box around it.

        Returns:
            One ``InteractionResultShape`` with its score, or none where the mask is empty.

        Raises:
            PromptError: There is neither a point nor a box.
        """
        points = [*prompts.pos_points, *prompts.neg_points]
        box = prompts.bounding_box
        if not points and box is None:
            raise PromptError("There is neither a point nor a box. Click on the object.")
        prompt = ObjectPrompt(
            points=[list(one) for one in points] or None,
            labels=[1] * len(prompts.pos_points) + [0] * len(prompts.neg_points) or None,
            box_xyxy=None if box is None else [*box[0], *box[1]],
        )
        found = self._segmenter.predict_objects(pp_image, prompt)
        if int(found.areas[0]) == 0:
            return []
        confidence = self._values.AttributeValRequest(
            spec_id=int(self._cvat.InteractionResultAttributes.CONFIDENCE),
            value=f"{min(1.0, max(0.0, float(found.scores[0]))):.4f}",
        )
        shape = self._cvat.InteractionResultShape(
            type="mask", points=_mask(found, 0), attributes=[confidence]
        )
        return [shape]


def create(
    bundle: str | Path,
    labels: str = "",
    kind: Literal["detection", "interaction"] = "detection",
    device: str = "auto",
) -> Detection | Interaction:
    """What ``cvat-cli --function-module samforge.integrations.cvat`` calls.

    Args:
        bundle: Folder of a bundle.
        labels: Of a detection function, parted by commas: ``person``, or ``vehicle=car`` where the
            phrase is another than the label. A label may come several times.
        kind: ``detection``, or ``interaction`` for clicks.
        device: Where to run, as ``samforge.load`` takes it.

    Raises:
        MissingExtra: cvat-sdk is not installed.
        SettingError: ``kind`` is another, labels are missing, or the bundle takes no clicks.
        BundleError: The bundle cannot be loaded.
    """
    if kind not in ("detection", "interaction"):
        raise SettingError(f"kind is {kind!r:.40}. Give detection or interaction.")
    wanted = labels_from_text(labels) if kind == "detection" else {}
    segmenter = load(bundle, device=device)
    return Interaction(segmenter) if kind == "interaction" else Detection(segmenter, wanted)


def labels_from_text(text: str) -> dict[str, list[str]]:
    """``person, vehicle=car, vehicle=truck``: the phrases of each label.

    Raises:
        SettingError: There is none.
    """
    labels: dict[str, list[str]] = {}
    for one in filter(None, (part.strip() for part in text.split(","))):
        name, _, phrase = (part.strip() for part in one.partition("="))
        labels.setdefault(name, []).append(phrase or name)
    if not labels:
        raise SettingError("There are no labels. Give labels=str:person,vehicle=car, for example.")
    return labels


def _mask(found: Detections, index: int) -> list[float]:
    points: list[float] = _sdk("cvat_sdk.masks").encode_mask(found.masks[[index]].dense()[0])
    return points


def _sdk(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra("cvat-sdk", "cvat") from error
