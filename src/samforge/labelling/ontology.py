"""What is labelled: classes, the phrases that find them, and which of two claims wins."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from samforge.core.errors import SettingError
from samforge.core.structure import StructureError, json_from_value, value_from_json
from samforge.core.words import encodable

OVERLAPS = ("score", "order", "both")
"""Which of two objects wins: the one with the better score, the one whose class stands first, or
neither."""

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExemplarBoxes:
    """Boxes on one picture of the source that show what to find on that picture."""

    picture: str
    """Its name in the data set: relative to the folder of the source."""
    boxes_xyxy: tuple[Box, ...]
    """Left, top, right and bottom in pixels of that picture."""
    box_labels: tuple[int, ...] | None = None
    """1 (like this) or 0 (not like this) for each box; None for all 1."""

    def __post_init__(self) -> None:
        if not self.boxes_xyxy:
            raise SettingError(f"The exemplars on {self.picture!r} hold no box. Give at least one.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelClass:
    """One class of the data set."""

    name: str
    """As the labels call it."""
    phrases: tuple[str, ...] = ()
    """Noun phrases that find it; none for its name."""
    threshold: float | None = None
    """Objects score above it; None for the ontology's."""
    negatives: tuple[str, ...] = ()
    """Phrases of what it is not: an object that one of them claims with at least its score, and
    nearly the same mask, is left out."""
    min_area: int | None = None
    """Fewest pixels of an object; None for the ontology's."""
    exemplars: tuple[ExemplarBoxes, ...] = ()
    """Boxes on pictures of the source, each for its own picture."""

    @property
    def sought(self) -> tuple[str, ...]:
        """The phrases that find it."""
        return self.phrases or (self.name,)

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise SettingError(f"A class has the name {self.name!r:.80}. Give printable text.")
        for phrase in (*self.phrases, *self.negatives):
            if not phrase.strip():
                raise SettingError(
                    f"Class {self.name!r} has an empty phrase. Give words, such as 'red circle'."
                )
            if encodable(phrase) != phrase:
                raise SettingError(
                    f"Class {self.name!r} has the phrase {phrase!r:.80}, which is no UTF-8. Give "
                    "words, such as 'red circle'."
                )
        if both := sorted(set(map(spelled, self.sought)) & set(map(spelled, self.negatives))):
            raise SettingError(
                f"Class {self.name!r} both seeks and rules out {both[0]!r}. Keep one of them."
            )
        _check_share(f"The threshold of class {self.name!r}", self.threshold)
        _check_area(f"min_area of class {self.name!r}", self.min_area)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ontology:
    """Classes in order, and what holds for all of them.

    Raises:
        SettingError: There is no class, two have one name or one phrase, or a number is outside
            what is allowed.
    """

    classes: tuple[LabelClass, ...]
    """Numbered in this order."""
    threshold: float = 0.5
    """Objects score above it, where their class does not say otherwise."""
    mask_threshold: float = 0.5
    """Pixels of a mask have a probability above it."""
    max_objects: int | None = None
    """Objects of a picture, those with the best scores over all phrases; None for all."""
    min_area: int = 1
    """Fewest pixels of an object, where its class does not say otherwise."""
    nms_within: float | None = 0.5
    """IoU from which two masks of one class are one object; None keeps both."""
    nms_across: float | None = 0.7
    """IoU from which masks of two classes are one object; None keeps both."""
    negative_iou: float = 0.5
    """IoU from which a negative phrase claims an object."""
    overlap: str = "score"
    """Which class wins, one of ``OVERLAPS``; ``both`` keeps the objects of both."""
    exclusive: bool = False
    """Whether a pixel that several objects cover is left to the winner alone."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise SettingError("An ontology has at least one class: --class 'car=car,automobile'.")
        if self.overlap not in OVERLAPS:
            raise SettingError(f"overlap is one of {', '.join(OVERLAPS)}, got {self.overlap!r}.")
        if self.exclusive and self.overlap == "both":
            raise SettingError(
                "exclusive leaves a pixel to one object, and overlap = 'both' to several. Give "
                "overlap = 'score' or 'order'."
            )
        for name in ("threshold", "mask_threshold", "nms_within", "nms_across", "negative_iou"):
            _check_share(name, getattr(self, name))
        for name in ("nms_within", "nms_across", "negative_iou"):
            if getattr(self, name) == 0:
                raise SettingError(f"{name} is above 0, for masks apart have an IoU of 0.")
        _check_area("min_area", self.min_area)
        if self.max_objects is not None and self.max_objects < 1:
            raise SettingError(f"max_objects is at least 1, got {self.max_objects}.")
        self._check_names()

    def _check_names(self) -> None:
        names = [one.name for one in self.classes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingError(f"Two classes have the name {twice[0]!r}. Give each its own.")
        owner: dict[str, str] = {}
        for one in self.classes:
            for phrase in map(spelled, one.sought):
                if owner.setdefault(phrase, one.name) != one.name:
                    raise SettingError(
                        f"The classes {owner[phrase]!r} and {one.name!r} have one phrase, "
                        f"{phrase!r}: what it finds would belong to both. Give it to one of them."
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(one.name for one in self.classes)

    @property
    def phrases(self) -> dict[str, float]:
        """Everything that is asked, with its threshold: phrases, then negatives of their own.

        A negative that no class seeks is looked for at the lowest threshold of its classes.
        """
        asked: dict[str, float] = {}
        spellings: set[str] = set()
        for one in self.classes:
            for phrase in one.sought:
                if spelled(phrase) not in spellings:
                    spellings.add(spelled(phrase))
                    asked[phrase] = self.threshold_of(one)
        ruled_out: dict[str, tuple[str, float]] = {}
        for one in self.classes:
            for phrase in one.negatives:
                if spelled(phrase) not in spellings:
                    known, lowest = ruled_out.get(spelled(phrase), (phrase, 1.0))
                    ruled_out[spelled(phrase)] = known, min(lowest, self.threshold_of(one))
        return asked | dict(ruled_out.values())

    @property
    def exemplar_pictures(self) -> dict[str, tuple[tuple[int, ExemplarBoxes], ...]]:
        """Boxes by picture, each with the number of its class."""
        found: dict[str, tuple[tuple[int, ExemplarBoxes], ...]] = {}
        for number, one in enumerate(self.classes):
            for boxes in one.exemplars:
                found[boxes.picture] = (*found.get(boxes.picture, ()), (number, boxes))
        return found

    def threshold_of(self, one: LabelClass) -> float:
        """What objects of a class score above."""
        return self.threshold if one.threshold is None else one.threshold

    def min_area_of(self, one: LabelClass) -> int:
        """Fewest pixels of an object of a class."""
        return self.min_area if one.min_area is None else one.min_area

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for provenance: what the TOML file says, with every default."""
        plain = json_from_value(self)
        assert isinstance(plain, dict)  # noqa: S101  # of a dataclass
        return plain

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says: equal ontologies have equal ones."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()

    def difference(self, other: Mapping[str, Any]) -> str:
        """Where another one, as :meth:`to_dict` gave it, says something else."""
        mine = self.to_dict()
        keys = [key for key in mine if mine[key] != other.get(key)]
        told = []
        for key in keys:
            if key == "classes":
                told.append(_different_classes(mine[key], other.get(key) or []))
            else:
                told.append(f"{key} {other.get(key)!r} then, {mine[key]!r} now")
        return "; ".join(told) or "nothing"

    @classmethod
    def from_toml(cls, path: str | Path) -> Ontology:
        """Read a TOML file.

        Raises:
            SettingError: It cannot be read, has unknown keys, or says what is not allowed.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingError(f"The ontology {path} cannot be read: {error}.") from error
        try:
            return value_from_json(cls, table, complete=False)
        except StructureError as error:
            raise SettingError(
                f"The ontology {path} is not usable: {error} See docs/labelling.md for its keys."
            ) from error
        except SettingError as error:
            raise SettingError(f"The ontology {path} is not usable: {error}") from error

    @classmethod
    def from_texts(cls, texts: Sequence[str], **settings: Any) -> Ontology:
        """Make one of texts such as ``car=car,automobile`` or ``person``.

        Args:
            texts: A class each: its name and, after ``=``, its phrases with commas between them.
            settings: Other fields, such as ``threshold``.

        Raises:
            SettingError: A text is none of these.
        """
        return cls(classes=tuple(map(_class_from_text, texts)), **settings)

    def with_settings(self, **settings: Any) -> Ontology:
        """The same with other values of some fields; None leaves a field as it is."""
        given = {name: value for name, value in settings.items() if value is not None}
        known = {field.name for field in fields(self)}
        if unknown := sorted(set(given) - known):
            raise SettingError(f"An ontology has no {unknown[0]!r}. It has {', '.join(known)}.")
        return replace(self, **given)


def spelled(phrase: str) -> str:
    """A phrase as phrases are compared: case and spaces make no other phrase."""
    return " ".join(phrase.casefold().split())


def _class_from_text(text: str) -> LabelClass:
    name, equals, listed = text.partition("=")
    phrases = tuple(phrase.strip() for phrase in listed.split(",")) if equals else ()
    if not name.strip() or not all(phrases) or (equals and not listed.strip()):
        raise SettingError(
            f"A class is 'name' or 'name=phrase,phrase', got {text!r:.80}. "
            "For example: --class 'car=car,automobile'."
        )
    return LabelClass(name=name.strip(), phrases=phrases)


def _different_classes(mine: Sequence[Any], theirs: Sequence[Any]) -> str:
    ours, others = ([one.get("name") for one in side] for side in (mine, theirs))
    if ours != others:
        return f"the classes {', '.join(map(str, others))} then, {', '.join(map(str, ours))} now"
    changed = [one["name"] for one, two in zip(mine, theirs, strict=True) if one != two]
    return f"what it says of {', '.join(changed)}"


def _check_share(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise SettingError(f"{name} is 0 to 1, got {value!r}.")


def _check_area(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise SettingError(f"{name} is at least 1 pixel, got {value}.")
