"""Label Studio's labelling interface: which control takes masks of which labels, on what image."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from samforge.core.errors import SettingError

_MASKS = ("BrushLabels", "PolygonLabels")
"""Controls that take masks; the first that an interface has is used."""
_MOST = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    """What predictions have to name."""

    control: str
    """Name of the control that masks go to."""
    kind: str
    """``brushlabels`` or ``polygonlabels``."""
    labels: tuple[str, ...]
    """Of the control; as phrases they are asked for."""
    image: str
    """Name of the image that is labelled."""
    variable: str
    """Where a task's data has that image."""


def interface_from_config(text: str) -> Interface:
    """Read a labelling interface.

    Args:
        text: XML, as a project's settings show it.

    Raises:
        SettingError: It is no XML, has no control for masks, or no image.
    """
    root = _parsed(text)
    images: dict[str | None, ET.Element] = {}
    for one in root.iter("Image"):
        images.setdefault(one.get("name"), one)
    for tag in _MASKS:
        for control in root.iter(tag):
            labels = tuple(
                dict.fromkeys(one.get("value", "").strip() for one in control.iter("Label"))
            )
            image = images.get(control.get("toName"))
            if image is None or not any(labels):
                continue
            return Interface(
                control=control.get("name", ""),
                kind=tag.lower(),
                labels=tuple(one for one in labels if one),
                image=image.get("name", ""),
                variable=image.get("value", "$image").lstrip("$"),
            )
    raise SettingError(
        "The labelling interface has no BrushLabels or PolygonLabels with labels on an Image. Add "
        "one of them: masks go there."
    )


def _parsed(text: str) -> ET.Element:
    # Entities could make a small text a large one; an interface has none.
    if len(text) > _MOST or "<!" in text.replace("<!--", ""):
        raise SettingError(
            f"The labelling interface has {len(text):,} characters, or declares a document type or "
            f"entities. At most {_MOST:,} are read, without declarations."
        )
    try:
        return ET.fromstring(text)  # noqa: S314  # no declarations: see above
    except (ET.ParseError, ValueError) as error:  # ValueError: text that is no Unicode
        raise SettingError(f"The labelling interface is no XML: {error}.") from error
