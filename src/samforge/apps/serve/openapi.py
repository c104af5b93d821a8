"""What OpenAPI cannot see by itself: bodies that are JSON or a form, and problem documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from samforge.apps.serve.problems import MEDIA_TYPE, Problem

_MEANING = {
    400: "The body cannot be read.",
    401: "There is no token that the server knows.",
    404: "What the request names is not here.",
    408: "The body did not arrive in time.",
    413: "The request is larger than the server takes.",
    415: "The body is of another content type.",
    422: "The picture, a prompt or a setting is not usable.",
    429: "This client has too many requests waiting.",
    500: "The answer cannot be trusted, or something unforeseen went wrong.",
    501: "The bundle, or this installation, cannot do that.",
    503: "The server has too much to do, is not ready, or ends.",
    504: "The request's time has passed.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": meaning,
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
    for status, meaning in _MEANING.items()
}
"""Every answer that is none, for a router."""


def body_schema(kind: type[BaseModel], *, files: bool = True) -> dict[str, Any]:
    """The request body of a route that reads it by itself.

    Args:
        kind: Its fields.
        files: Whether the picture may come as a file of a form.
    """
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    content: dict[str, Any] = {"application/json": {"schema": _inlined(schema, definitions)}}
    if files:
        form = _inlined(schema, definitions)
        form["properties"] = form["properties"] | {"image": {"type": "string", "format": "binary"}}
        form["required"] = ["image"] if "image" in schema.get("required", []) else []
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def form_schema(kind: type[BaseModel], file: str) -> dict[str, Any]:
    """The request body of a route that takes a form with one file."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    form = _inlined(schema, schema.pop("$defs", {}))
    form["properties"] = {file: {"type": "string", "format": "binary"}} | form["properties"]
    form["required"] = [file]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references: the definitions of routes' own bodies are not registered."""
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name:
            return _inlined(definitions[name], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    return schema
