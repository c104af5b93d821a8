"""From a request's body to a picture and a question: JSON with base64, or a form with files."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from samforge.apps.serve.bodies import AskBody, EarlierMask, ObjectBody, SegmentBody
from samforge.apps.serve.context import client_of, service_of
from samforge.apps.serve.problems import Refused
from samforge.core.detections import Detections
from samforge.core.errors import ImageError, PromptError, SettingError, TooLarge
from samforge.runtime import ObjectPrompt
from samforge.serving import Ask, Limits, Picture

Body = TypeVar("Body", bound=BaseModel)
_TEXTS = {"text", "model", "image_id", "masks", "earlier"}
"""Fields of a form that are text as they stand; the others are read as JSON."""
MOST_FIELDS = 256
"""Fields of a form."""
MOST_VALUES = 1_000_000
"""Of a body: masks as runs have many, nothing else does."""
_MASKS_OF_PICTURES = 4
"""Pixels that the masks of a request may have together, in pictures of the largest size."""
SMALL_BYTES = 1 << 18
"""What is read at once: a thread of its own costs more than a millisecond of the event loop."""


async def body_of(request: Request, kind: type[Body]) -> tuple[Body, bytes | None]:
    """The fields of a request, and its picture where that came as a file.

    Raises:
        Refused: It is neither JSON nor a form.
        ValidationError: A field is missing, of another type, or unknown.
        TooLarge: A list is longer than the limits say.
    """
    content, limits = content_type(request), service_of(request).limits
    if content == "application/json":
        text = await request.body()
        if len(text) < SMALL_BYTES:
            return _from_json(kind, text, limits), None
        return await asyncio.to_thread(_from_json, kind, text, limits), None
    if content != "multipart/form-data":
        raise Refused(
            415,
            f"The body is {content[:80] or 'of no content type'}. Send application/json with the "
            "picture as base64, or multipart/form-data with it as a file.",
        )
    async with _form_of(request) as form:
        fields, file = fields_of(form, "image", kind)
        data = None if file is None else await file.read()
    if data is not None and "image" in kind.model_fields:
        fields.setdefault("image", "")
    return checked(kind, fields, limits), data


class _InMemory(MultiPartParser):
    """Keeps files in memory, where starlette writes all above 1 MiB to disk, in small pieces.

    The door bounds bodies and counts them together, and a container may have no disk to write to.
    """

    spool_max_size = sys.maxsize


@asynccontextmanager
async def _form_of(request: Request) -> AsyncIterator[FormData]:
    """The form of a request, which is gone afterwards.

    Raises:
        Refused: It cannot be read.
    """
    parser = _InMemory(request.headers, request.stream(), max_files=4, max_fields=MOST_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"The form cannot be read: {error.message}") from error
    try:
        yield form
    finally:
        await form.close()


def checked(kind: type[Body], fields: Any, limits: Limits) -> Body:
    """Fields as a body: lists are counted before what is in them is read.

    Raises:
        ValidationError: A field is missing, of another type, or unknown.
        TooLarge: A list is longer than the limits say.
    """
    try:
        return kind.model_validate(fields, context=limits)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            inner = found.get("ctx", {}).get("error")
            if isinstance(inner, TooLarge):  # which is a ValueError, and so was wrapped
                raise inner from None
        raise


def _from_json(kind: type[Body], text: bytes, limits: Limits) -> Body:
    # A value takes up to a hundred times the memory of its two characters.
    if text.count(b",") > MOST_VALUES:
        raise TooLarge(
            f"The body has more than {MOST_VALUES:,} values beside its picture. Ask in parts."
        )
    try:
        fields = from_json(text)
    except ValueError as error:
        raise Refused(422, f"The body is not JSON: {error}.") from error
    return checked(kind, fields, limits)


def content_type(request: Request) -> str:
    """Without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def fields_of(
    form: FormData, file_name: str, kind: type[BaseModel]
) -> tuple[dict[str, Any], UploadFile | None]:
    """The fields of a form as JSON has them, and its one file.

    Args:
        form: It.
        file_name: Name of the field that is the file.
        kind: Knows the other fields.

    Raises:
        Refused: Another field is a file, there are two files, or a field is not known.
        SettingError: A field is not JSON.
    """
    file: UploadFile | None = None
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(form.keys()):
        values = form.getlist(name)
        if name == file_name and isinstance(values[0], UploadFile):
            if len(values) > 1:
                raise Refused(422, f"{file_name} came {len(values)} times. Send one file.")
            file = values[0]
        elif any(isinstance(value, UploadFile) for value in values):
            raise Refused(422, f"{name[:40]} came as a file. Only {file_name} is one.")
        elif name not in kind.model_fields:
            known = ", ".join(dict.fromkeys((file_name, *kind.model_fields)))
            raise Refused(422, f"The form has a field {name[:40]!r}. Those known are {known}.")
        elif name == "text":
            fields[name] = [str(value) for value in values]
        else:
            fields[name] = _value(name, str(values[-1]))
    return fields, file


def _value(name: str, text: str) -> Any:
    """A field of a form: JSON, but for those that are text."""
    if name in _TEXTS and not (name == "earlier" and text.lstrip().startswith("[")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(
            f"The field {name[:40]} is JSON in a form, got {text!r:.80}. Boxes are "
            "[[left, top, right, bottom]], for one."
        ) from error


async def picture_from(request: Request, body: SegmentBody, file: bytes | None) -> Picture:
    """The picture that a request is about.

    Raises:
        ImageError: There is none, or more than one, or it is not base64.
        NotHere: Nothing is kept under its id.
    """
    given = [name for name, one in (("image", body.image), ("image_id", body.image_id)) if one]
    if file is not None and "image" not in given:
        given.append("image")
    if len(given) != 1:
        raise ImageError(
            f"The request brings {' and '.join(given) or 'no picture'}. Send one picture: a file "
            "or base64 as image, or an image_id."
        )
    if body.image_id:
        return service_of(request).pictures.get(client_of(request), body.image_id)
    return await picture_from_data(file if file is not None else str(body.image))


async def picture_from_data(data: bytes | str) -> Picture:
    """A picture from its file, or from that as base64 or data URI; hashed beside the event loop.

    Raises:
        ImageError: It is not base64.
    """
    if len(data) < SMALL_BYTES:
        return _hashed(data)
    return await asyncio.to_thread(_hashed, data)


def _hashed(data: bytes | str) -> Picture:
    return Picture.of(data if isinstance(data, bytes) else bytes_from_base64(data))


def bytes_from_base64(text: str) -> bytes:
    """Bytes of base64, alone or behind ``data:image/…;base64,``.

    Raises:
        ImageError: It is something else.
    """
    if text.startswith(("http://", "https://", "ftp://", "file:")):
        raise ImageError("image is a URL, and this server fetches none. Send the file itself.")
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise ImageError(f"The data URI begins {head[:40]!r}. Send data:image/png;base64,….")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"image is not base64: {error}. Send the file's bytes as it.") from error


async def ask_from(request: Request, body: AskBody, picture: Picture) -> Ask:
    """The question of a request about a picture.

    Raises:
        PromptError: Prompts exclude each other, or do not fit.
        NotHere: What clicks correct is not kept.
    """
    return Ask(
        text=phrases_from(body.text),
        boxes_xyxy=body.boxes_xyxy,
        box_labels=body.box_labels,
        objects=tuple(object_from(one) for one in body.objects or ()),
        earlier=await _earlier(request, body, picture),
        candidates=body.candidates,
        threshold=tuple(body.threshold) if isinstance(body.threshold, list) else body.threshold,
        mask_threshold=body.mask_threshold,
        hole_area=body.hole_area,
        max_detections=body.max_detections,
    )


def phrases_from(text: str | list[str] | None) -> tuple[str, ...] | None:
    """One phrase or several, as they may come."""
    if text is None:
        return None
    return (text,) if isinstance(text, str) else tuple(text)


def object_from(body: ObjectBody) -> ObjectPrompt:
    """What shows one object."""
    return ObjectPrompt(points=body.points, labels=body.labels, box_xyxy=body.box_xyxy)


async def _earlier(request: Request, body: AskBody, picture: Picture) -> Detections | None:
    service = service_of(request)
    if body.earlier is None:
        return None
    if isinstance(body.earlier, str):
        known = service.answers.get(client_of(request), body.earlier)
        if known.picture != picture.key:
            raise PromptError(
                "earlier is an answer about another picture, and clicks correct what is known of "
                "theirs. Give the answer_id of this picture."
            )
        return known.found
    if not body.earlier:
        raise PromptError("earlier is empty. Give a mask for each object, or leave it out.")
    # Beside the event loop: 64 masks of 64 megapixels take seconds.
    return await asyncio.to_thread(_of_masks, body.earlier, service.limits)


def _of_masks(earlier: Sequence[EarlierMask], limits: Limits) -> Detections:
    rles: list[Mapping[str, Any]] = [one.rle.model_dump() for one in earlier]
    size = tuple(rles[0]["size"])
    if size[0] * size[1] > limits.pixels:
        raise TooLarge(
            f"The masks of earlier have {size[0]} x {size[1]} pixels, at most "
            f"{limits.pixels:,} are taken."
        )
    if len(rles) * size[0] * size[1] > _MASKS_OF_PICTURES * limits.pixels:
        raise TooLarge(
            f"The {len(rles)} masks of earlier have {size[0]} x {size[1]} pixels each, at most "
            f"{_MASKS_OF_PICTURES * limits.pixels:,} are taken together. Correct fewer at once."
        )
    rows = [
        {"segmentation": rle, "category_name": f"object {row + 1}"} for row, rle in enumerate(rles)
    ]
    return Detections.from_coco(rows, (size[0], size[1]))
