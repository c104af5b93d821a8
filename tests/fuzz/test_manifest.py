"""Manifests of any content end in a manifest or in an error of ours, quickly, and never in another.

Run by ``make fuzz``; ``make test`` leaves this folder out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import forged

from samforge.core.bundle import open_bundle
from samforge.core.errors import BundleError, SamforgeError
from samforge.core.manifest import Manifest, manifest_from_text, manifest_text, sealed
from samforge.core.own_folder import manifest_table
from samforge.core.strict_json import StrictJsonError, strict_json

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["", "nan", "inf", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[tuple[Any, ...]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        inside.append((*path, key))
        if isinstance(item, dict | list):
            inside += _places(item, (*path, key))
    return inside


def _changed(manifest: Manifest, data: st.DataObject) -> dict[str, Any]:
    """The table with some of its values, anywhere, replaced, removed or added to."""
    table: dict[str, Any] = json.loads(manifest_text(manifest))
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(_places(table)))
        holder: Any = table
        for key in way:
            holder = holder[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del holder[last]
        elif action == "add" and isinstance(holder, dict):
            holder[data.draw(st.text(max_size=8))] = data.draw(ANY)
        else:
            holder[last] = data.draw(ANY)
        if not table:
            break
    return table


def _read(text: str) -> Manifest | None:
    try:
        return manifest_from_text(text, place="here")
    except BundleError:
        return None


@FUZZED
@given(data=st.data())
def test_any_value_anywhere(manifest: Manifest, data: st.DataObject) -> None:
    table = _changed(manifest, data)
    try:
        text = forged(table)
    except (ValueError, UnicodeEncodeError):  # what no JSON can say
        text = json.dumps(table)
    read = _read(text)
    if read is not None:
        assert sealed(read).digest == read.digest or manifest_text(read)
    assert _read(json.dumps(table)) is None, "under the old digest, or in another form"


@FUZZED
@given(data=st.data())
def test_any_bytes_anywhere(manifest: Manifest, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(manifest_text(manifest).encode())
    before = bytes(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 40))
        content[place : place + length] = data.draw(st.binary(max_size=40))
    (tmp_path / "manifest.json").write_bytes(content)
    try:
        open_bundle(tmp_path)
        accepted = True
    except SamforgeError as error:
        accepted = "is missing" in str(error) or "is not among its files" in str(error)
    assert not accepted or bytes(content) == before
    assert manifest_table(tmp_path) is None or isinstance(manifest_table(tmp_path), dict)


@FUZZED
@given(text=st.text() | ANY.map(lambda value: json.dumps(value, allow_nan=True)))
def test_any_text(text: str) -> None:
    assert _read(text) is None
    try:
        value = strict_json(text)
    except StrictJsonError:
        return
    assert json.dumps(strict_json(json.dumps(value))) == json.dumps(value)


@FUZZED
@given(
    bracket=st.sampled_from(["[", '{"a":', "[{", '[["', '{"a":[']),
    count=st.integers(1, 200_000),
    before=st.sampled_from(["", '{"schema_version": 3, "samforge": "1", "model": ']),
)
def test_any_depth(bracket: str, count: int, before: str) -> None:
    assert _read(before + bracket * count) is None


@FUZZED
@given(
    digits=st.integers(1, 20_000),
    sign=st.sampled_from(["", "-"]),
    tail=st.sampled_from(["", ".5", "e9", "e999999999"]),
)
def test_any_number(manifest: Manifest, digits: int, sign: str, tail: str) -> None:
    number = f"{sign}{'9' * digits}{tail}"
    assert _read(manifest_text(manifest).replace("1.5", number, 1)) is None
