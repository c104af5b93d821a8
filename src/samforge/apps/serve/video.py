"""Videos: a file in, a line of JSON for each frame out, as it comes."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from samforge.apps.serve.bodies import VideoBody
from samforge.apps.serve.context import client_of
from samforge.apps.serve.describing import bundle_of
from samforge.apps.serve.openapi import PROBLEMS, form_schema
from samforge.apps.serve.problems import Refused, problem_from_error, request_id_of
from samforge.apps.serve.reading import (
    checked,
    content_type,
    fields_of,
    object_from,
    phrases_from,
)
from samforge.core.errors import Overloaded, SamforgeError, VideoError
from samforge.runtime import PromptAt
from samforge.serving import FrameFound, MaskFormat, Place, Service, VideoAsk, VideoRun, packed

_AGAIN_SECONDS = 0.05
_LINES = "application/x-ndjson"
_MOST_FIELDS, _FIELD_BYTES = 128, 1 << 17
"""Of a form: they lie in memory and are not counted, as the file is on disk."""


def video_router(service: Service) -> APIRouter:
    """``/v1/video``."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS, tags=["native"])

    @router.post(
        "/video",
        operation_id="video",
        openapi_extra=form_schema(VideoBody, "video"),
        response_class=Response,
        responses={200: {"description": "A line for each frame.", "content": {_LINES: {}}}},
    )
    async def video(request: Request) -> Response:
        """Follow objects through a video: a line of JSON for each frame, with ids.

        The first line says what the video is, the last one that it has ended. What goes wrong on
        the way is a line as well: a problem document.
        """
        if content_type(request) != "multipart/form-data":
            raise Refused(415, "Send multipart/form-data with the file as video.")
        with ExitStack() as held:
            place = held.enter_context(closing(service.videos.begin()))  # before any of it is read
            folder = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="samforge-")
            held.callback(folder.cleanup)
            async with request.form(
                max_files=1, max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES
            ) as form:
                fields, file = fields_of(form, "video", VideoBody)
                body = checked(VideoBody, fields, service.limits)
                path = Path(folder.name) / "video"
                await asyncio.to_thread(_copied, file, path)
            run = await asyncio.to_thread(_opened, service, request, path, body, place)
            held.pop_all()
        return _Lines(run, folder, _lines(run, service, request, body))

    return router


def _copied(file: UploadFile | None, path: Path) -> None:
    if file is None:
        raise Refused(422, "The form has no file as video.")
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target, 1 << 20)


def _opened(
    service: Service, request: Request, path: Path, body: VideoBody, place: Place
) -> VideoRun:
    ask = VideoAsk(
        text=phrases_from(body.text),
        prompts=tuple(
            PromptAt(frame=one.frame, prompt=object_from(one), label=one.label)
            for one in body.prompts or ()
        ),
        threshold=body.threshold,
        every=body.every,
        max_frames=body.max_frames,
    )
    model = service.model(body.model)
    try:
        return VideoRun(service, model, path, ask, client=client_of(request), place=place)
    except VideoError as error:  # where it lies here is nobody's business
        raise VideoError(str(error).replace(str(path), "The file")) from error


class _Lines(StreamingResponse):
    """Lines as they come. However it ends, even before the first, the video is let go."""

    def __init__(
        self,
        run: VideoRun,
        folder: tempfile.TemporaryDirectory[str],
        lines: AsyncIterator[bytes],
    ) -> None:
        super().__init__(lines, media_type=_LINES)
        self._run, self._folder = run, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not awaited: where the client left, whatever is awaited here is cancelled at once.
            asyncio.get_running_loop().run_in_executor(None, self._let_go)

    def _let_go(self) -> None:
        self._run.close()
        self._folder.cleanup()


async def _lines(
    run: VideoRun, service: Service, request: Request, body: VideoBody
) -> AsyncIterator[bytes]:
    """The answer, line by line."""
    frames = 0
    try:
        info = run.info
        yield _line(
            {
                "video": {
                    "frames": info.frames,
                    "seconds": info.seconds,
                    "frame_rate": float(info.frame_rate),
                },
                "tracks": run.tracks,
                "bundle": bundle_of(service.model(body.model)),
            }
        )
        while (found := await _next(run, service.limits.seconds)) is not None:
            for one in found:
                frames += 1
                yield await asyncio.to_thread(_frame_line, one, body.masks)
        problem: Any = run.problem
    except SamforgeError as error:
        problem = json.loads(bytes(problem_from_error(error, request_id_of(request)).body))
    # Before the last line: who has read that may send the next video.
    await asyncio.to_thread(run.close)
    yield _line({"end": True, "frames": frames, "problem": problem})


async def _next(run: VideoRun, seconds: float) -> list[FrameFound] | None:
    """The frames that leave with the next one; it waits where others were first."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            ticket = run.step()
        except Overloaded:
            if asyncio.get_running_loop().time() > end:
                raise
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        if ticket is None:
            return None
        found: list[FrameFound] = await asyncio.wrap_future(ticket.future)
        return found


def _frame_line(found: FrameFound, masks: MaskFormat) -> bytes:
    detections = found.detections
    return _line(
        {
            "frame": found.index,
            "seconds": round(found.seconds, 6),
            "size_hw": list(detections.size_hw),
            "detections": packed(detections, masks),
            "best_scores": {key: float(one) for key, one in detections.best_scores.items()},
            "removed": list(found.removed),
        }
    )


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
