"""An account of weights: where each tensor of a program is found in what was made from it.

Samples see what they touch: a row of an embedding table that no sample looks up may be anything.
So every tensor is looked up by its content. It is there as it was, in another layout, cast, or
quantized so that every number lies within half a step; anything else is not this tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

EQUAL = "equal"
MOVED = "moved"
REORDERED = "reordered"
REPEATED = "repeated"
MISSING = "missing"
PROBES = 64
"""Numbers that are compared before all are."""
CASTS: Mapping[str, npt.DTypeLike] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
MOST_AXES = 4
"""Of tensors whose axes may have changed places."""
FLOAT8 = "float8_e4m3fn"
FLOAT8_BITS = 3
"""Behind the point."""
FLOAT8_NORMAL = 2**-6
"""Smallest normal number; below it steps stay as they are."""
NEGLIGIBLE = 1e-4
"""Of the largest number: a channel of smaller ones may be all zeros in 8 bits."""
SLACK = 1e-4
"""Relative: float32 rounds a scale, a quotient and a product before the integer is rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What became of one tensor."""

    name: str
    """In the program."""
    form: str
    """``equal``; ``moved`` (another shape or order of axes); ``float16``, ``bfloat16``, ``int8``,
    ``float8_e4m3fn`` (cast or quantized), with ``, reordered`` behind it where channels stand in
    another order; ``repeated``; the name of a fusion, or why it was left out; ``missing``."""
    place: str | None = None
    """Name of the tensor that holds it; None where there is none or it is not one."""


def account_for(
    weights: Mapping[str, Array],
    stored: Mapping[str, Array],
    *,
    exact: frozenset[str] = frozenset(),
) -> tuple[Entry, ...]:
    """Look every tensor up in what is stored.

    Args:
        weights: Tensors of the program, by name.
        stored: Tensors of what was made from it, by name, in whatever type.
        exact: Names that may neither be reordered nor quantized by columns: tables, whose rows are
            looked up by their number.

    Returns:
        One entry for each of ``weights``, in their order.
    """
    by_size: dict[int, list[str]] = {}
    for name, array in stored.items():
        by_size.setdefault(array.size, []).append(name)
    entries = []
    for name, array in weights.items():
        places = by_size.get(array.size, [])
        if name in stored and name in places:
            # A name that is kept is what is read: no twin elsewhere stands in for it.
            places = [name]
        form, place = _found(array, {one: stored[one] for one in places}, strict=name in exact)
        if form == MISSING and array.ndim == 1 and name not in exact:
            form, place = _repeated(array, stored)
        entries.append(Entry(name=name, form=form, place=place))
    return tuple(entries)


def same_digits(array: Array, other: Array) -> bool:
    """Whether two arrays of numbers differ by powers of two alone."""
    return array.shape == other.shape and bool((np.frexp(array)[0] == np.frexp(other)[0]).all())


def counted(entries: Iterable[Entry]) -> dict[str, int]:
    """How many tensors there are of each form."""
    return dict(sorted(Counter(entry.form for entry in entries).items()))


def _found(array: Array, stored: Mapping[str, Array], *, strict: bool) -> tuple[str, str | None]:
    for place, other in stored.items():
        form = _form(array, other, strict=strict)
        if form is not None:
            return form, place
    if not strict:
        for place, other in stored.items():
            form = _reordered(array, other)
            if form is not None:
                return f"{form}, {REORDERED}", place
    return MISSING, None


def _repeated(array: Array, stored: Mapping[str, Array]) -> tuple[str, str | None]:
    """A vector whose numbers stand several times in a row each: once for a cell of a kernel."""
    for place, other in stored.items():
        times, rest = divmod(other.size, max(array.size, 1))
        alike = other.ndim == 1 and times > 1 and not rest and other.dtype == array.dtype
        if alike and _same(np.repeat(array, times), other):
            return REPEATED, place
    return MISSING, None


def _form(array: Array, other: Array, *, strict: bool) -> str | None:
    """How ``other`` holds ``array``; None where it does not."""
    if array.dtype == other.dtype:
        if array.shape == other.shape and _same(array, other):
            return EQUAL
        if any(_same(one, other) for one in _layouts(array, other)):
            return MOVED
        if array.dtype != np.int8:
            return None  # int8 may be rounded again, to a scale that half can hold
    kind = str(other.dtype)
    if array.dtype == np.int8 and kind in ("float32", *CASTS):
        # A layer that went back to float: the numbers that its integers stand for.
        return (
            kind
            if any(_quantized(other, one, strict=strict) for one in _layouts(array, other))
            else None
        )
    if array.dtype.kind != "f" and array.dtype != np.int8:
        return None
    for arranged in _layouts(array, other):
        if kind in CASTS and _same_cast(arranged, other, kind):
            return kind
        if kind in ("int8", FLOAT8) and _quantized(arranged, other, strict=strict):
            return kind
    return None


def _layouts(array: Array, other: Array) -> Iterator[Array]:
    """The numbers in every order of axes that may give ``other``'s shape."""
    for order in permutations(range(array.ndim)) if array.ndim <= MOST_AXES else ():
        moved = array.transpose(order)
        if moved.shape == other.shape or array.ndim != other.ndim:
            yield moved.reshape(other.shape)


def _cast(array: Array, kind: str) -> Array:
    if kind == "float16":  # a mask of -3.4e38 becomes the lowest number there is, not infinity
        limit = float(np.finfo(np.float16).max)
        array = np.clip(array, -limit, limit)
    with np.errstate(over="ignore"):
        return array.astype(CASTS[kind])


def _same_cast(array: Array, other: Array, kind: str) -> bool:
    """The same after a cast; most that are not differ in the few numbers that are cast first."""
    few = np.array_equal(_cast(_probe(array), kind), _probe(other))
    return few and bool(np.array_equal(_cast(array, kind), other))


def _same(one: Array, other: Array) -> bool:
    """Equal in every bit that matters; NaN equals nothing."""
    return bool(np.array_equal(_probe(one), _probe(other)) and np.array_equal(one, other))


def _probe(array: Array) -> Array:
    """A few numbers, spread evenly."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    places = np.linspace(0, array.size - 1, min(PROBES, array.size)).astype(np.int64)
    return np.asarray(flat[places])


def _quantized(array: Array, other: Array, *, strict: bool) -> bool:
    """Whether one scale for each channel, along some axis, makes the array of what is stored."""
    few, few_marks = (_probe(one).astype(np.float32)[:, None] for one in (array, other))
    if not _rounded(few, few_marks, other.dtype):
        return False
    floats, marks = array.astype(np.float32), other.astype(np.float32)
    axes = (0,) if strict else tuple(range(array.ndim))
    # Only what is next to nothing may have become nothing: zeros fit every scale.
    negligible = NEGLIGIBLE * float(np.abs(floats).max(initial=0))
    return any(
        _rounded(_rows(floats, axis), _rows(marks, axis), other.dtype)
        and not (
            (_rows(marks, axis) == 0).all(axis=1)
            & (np.abs(_rows(floats, axis)).max(axis=1) > negligible)
        ).any()
        for axis in axes
    )


def _rows(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _rounded(rows: Array, marks: Array, dtype: np.dtype[Any]) -> bool:
    """Whether each row has a scale with which all of its numbers round to their marks.

    ``w`` rounds to ``q`` where ``(|q| - h) s <= |w| <= (|q| + h) s``, with half a step ``h``: every
    number bounds the scale ``s`` from both sides, and the bounds of a row must leave some room.
    """
    low, high = scale_bounds(rows, marks, dtype)
    signs = (np.sign(rows) == np.sign(marks)) | (marks == 0)
    return bool(signs.all() and (low <= high).all())


def scale_bounds(rows: Array, marks: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Smallest and largest scale of each row, (rows,) both; the smallest above it: there is none.

    Args:
        rows: Numbers, (rows, n).
        marks: What they were rounded to, in units of the scale; the same shape.
        dtype: Of the marks: int8 or float8_e4m3fn.
    """
    size, numbers = np.abs(marks), np.abs(rows)
    if dtype == np.int8:
        half, end = np.full_like(size, 0.5), 127.0
    else:
        # A whole step for a half: what comes from int8, or to a scale that half holds, was rounded
        # twice.
        step = np.exp2(np.floor(np.log2(np.maximum(size, FLOAT8_NORMAL))) - FLOAT8_BITS)
        half, end = step, 448.0
    # What lies beyond the end of the range is cut off, and tells no more than that it does.
    reached = np.where(size >= end, 0.0, numbers / (size + half))
    with np.errstate(divide="ignore"):
        allowed = np.where(size > half, numbers / np.maximum(size - half, 1e-30), np.inf)
    return reached.max(axis=1) * (1 - SLACK), allowed.min(axis=1) * (1 + SLACK)


def _reordered(array: Array, other: Array) -> str | None:
    """The form in which ``other`` holds the array's channels in another order; None if it does not.

    Channels stand along the first axis of the array, and along some axis of what is stored.
    """
    if array.ndim not in (1, 2) or (array.dtype.kind != "f" and array.dtype != np.int8):
        return None
    kind = str(other.dtype)
    if array.ndim == 1:
        wanted = _cast(array, kind) if kind in CASTS else array
        same = wanted.dtype == other.dtype and _same(np.sort(wanted), np.sort(other.reshape(-1)))
        return _name(kind, array) if same else None
    for arranged in (other, other.T) if other.ndim == 2 else ():
        if arranged.shape != array.shape:
            continue
        order = _order(array, arranged)
        if order is not None and (form := _form(array[order], arranged, strict=False)) is not None:
            return form
    return None


def _name(kind: str, array: Array) -> str:
    return MOVED if kind == str(array.dtype) else kind


def _order(array: Array, other: Array) -> Array | None:
    """Row of the array that is most like each row of ``other``; None unless each is taken once."""
    first, second = (_directions(one.astype(np.float32)) for one in (array, other))
    order = np.asarray((second @ first.T).argmax(axis=1))
    return order if len(np.unique(order)) == len(order) else None


def _directions(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))
