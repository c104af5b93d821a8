"""Manifests of any content end in a manifest or in an error of ours, quickly, and never in another.

Target of ``make fuzz``; ``make test`` does not collect it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from made_up import forged

from samforge.core.bundle import open_bundle
from samforge.core.errors import BundleError, SamforgeError
from samforge.core.manifest import FileEntry, Manifest, manifest_from_text, manifest_text, sealed
from samforge.core.own_folder import manifest_table
from samforge.core.strict_json import StrictJsonError, strict_json

Repeat = Callable[[Callable[[], None]], None]
Remember = Callable[[object], None]

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


def test_manifests_with_any_value_anywhere(
    repeat: Repeat, remember: Remember, manifest: Manifest
) -> None:
    @given(st.data())
    def run(data: st.DataObject) -> None:
        table = _changed(manifest, data)
        remember(table)
        read = None
        with contextlib.suppress(ValueError):  # what no JSON can say
            read = _read(forged(table))
        if read is not None:
            assert sealed(read).digest == read.digest or manifest_text(read)
        assert _read(json.dumps(table)) is None, "under the old digest, or in another form"

    repeat(run)


def test_manifests_with_any_bytes_anywhere(
    repeat: Repeat, remember: Remember, manifest: Manifest, tmp_path: Path
) -> None:
    # All that it names is among its files: nothing but a change of the text may be refused first.
    named = [file for part in manifest.parts.values() for file in (part.artifact, *part.side_files)]
    entry = FileEntry(sha256="0" * 64, bytes=1)
    files = dict.fromkeys((*named, "tokenizer/tokenizer.json"), entry)
    text = manifest_text(replace(manifest, files=files)).encode()

    @given(st.data())
    def run(data: st.DataObject) -> None:
        content = bytearray(text)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content)))
            length = data.draw(st.integers(0, 40))
            content[place : place + length] = data.draw(st.binary(max_size=40))
        remember(bytes(content))
        (tmp_path / "manifest.json").write_bytes(content)
        try:
            open_bundle(tmp_path)
            accepted = True
        except SamforgeError as error:
            accepted = "is missing" in str(error)
        assert not accepted or bytes(content) == text
        # Whose folder it is follows from what the manifest says, however it is spaced.
        table = manifest_table(tmp_path)
        assert table is None or table == strict_json(text.decode())

    repeat(run)


def test_manifests_of_any_text(repeat: Repeat, remember: Remember) -> None:
    @given(st.text() | ANY.map(lambda value: json.dumps(value, allow_nan=True)))
    def run(text: str) -> None:
        remember(text)
        assert _read(text) is None
        with contextlib.suppress(StrictJsonError):
            value = strict_json(text)
            assert json.dumps(strict_json(json.dumps(value))) == json.dumps(value)

    repeat(run)


def test_manifests_of_any_depth(repeat: Repeat, remember: Remember) -> None:
    @given(
        bracket=st.sampled_from(["[", '{"a":', "[{", "[[", '{"a":[']),
        count=st.integers(1, 200_000),
        before=st.sampled_from(["", '{"schema_version": 3, "samforge": "1", "model": ']),
    )
    def run(bracket: str, count: int, before: str) -> None:
        remember((bracket, count, before))
        assert _read(before + bracket * count) is None

    repeat(run)


def test_manifests_with_any_number(repeat: Repeat, remember: Remember, manifest: Manifest) -> None:
    text = manifest_text(manifest)

    @given(
        digits=st.integers(1, 20_000),
        sign=st.sampled_from(["", "-"]),
        tail=st.sampled_from(["", ".5", "e9", "e999999999"]),
    )
    def run(digits: int, sign: str, tail: str) -> None:
        remember((digits, sign, tail))
        assert _read(text.replace("1.5", f"{sign}{'9' * digits}{tail}", 1)) is None

    repeat(run)
