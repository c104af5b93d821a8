"""What a source holds: a folder, glob, list, COCO file, Parquet, tar, video, or a URL of these."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from samforge.core.errors import SamforgeError
from samforge.core.native import native_errors
from samforge.core.paths import checked_path, is_folder
from samforge.core.words import encodable
from samforge.formats import MOST_ID
from samforge.labelling.items import (
    Item,
    Listing,
    SourceError,
    WholeFile,
    checked_name,
    is_url,
    shared_names,
)
from samforge.labelling.places import exists, file_system, opened, stamp_of, stamp_of_entry
from samforge.labelling.shards import parquet_items, tar_items
from samforge.media import VIDEO_SUFFIXES, listing_of_folder
from samforge.media.images import SUFFIXES

LISTS, COCO, PARQUET, TAR = (".txt", ".lst"), (".json",), (".parquet", ".pq"), (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def listed(
    sources: Sequence[str | Path],
    *,
    pictures: str | Path | None = None,
    out: str | Path | None = None,
) -> list[Listing]:
    """List what sources hold; names are unique over all of them.

    Args:
        sources: A folder, a glob, a list of paths (``.txt``), a COCO file (``.json``), a Parquet
            file, a tar (WebDataset), a picture or a video, each as a path or a URL of fsspec.
        pictures: Folder of the pictures of a COCO file, where they are not beside it.
        out: Where labels go: pictures below it are the run's own, and left out.

    Raises:
        SourceError: One does not exist, is of another kind, or holds nothing.
        MissingExtra: What reads it is not installed.
    """
    if not sources:
        raise SourceError("There is no source. Give a folder of pictures, or another source.")
    folder = None if pictures is None else str(pictures)
    found = [
        _filled(
            _without_own(_with_checked_names(_listing(str(one), folder), str(one)), out), str(one)
        )
        for one in sources
    ]
    if len(found) == 1:
        return [_without_twins(found[0], set())]
    named: list[Listing] = []
    labels: dict[str, int] = {}
    taken: set[str] = set()
    for listing in found:
        label = PurePosixPath(listing.root.rstrip("/")).name.partition(".")[0] or "root"
        count = labels[label] = labels.get(label, 0) + 1
        prefix = encodable(label if count == 1 else f"{label}-{count}")
        items = [
            replace(item, name=f"{prefix}/{item.name}", given_id=None) for item in listing.items
        ]
        named.append(_without_twins(replace(listing, items=items), taken))
    return named


def _with_checked_names(listing: Listing, source: str) -> Listing:
    """Names that files of a data set can have, whatever the source is."""
    items = [replace(item, name=checked_name(item.name, source)) for item in listing.items]
    return replace(listing, items=items)


def _without_own(listing: Listing, out: str | Path | None) -> Listing:
    """Without what a run has written itself, where its folder lies in the source."""
    own = None if out is None else Path(os.path.abspath(out))  # noqa: PTH100  names alone
    if own is None or str(own) == listing.root:  # a source is no output: that is told elsewhere
        return listing
    items = [item for item in listing.items if not _is_below(item, own)]
    left_out = len(listing.items) - len(items)
    if not left_out:
        return listing
    note = f"{listing.root}: {left_out} pictures in {own.name}, where labels go, were left out."
    return replace(listing, items=items, notes=(*listing.notes, note))


def _is_below(item: Item, folder: Path) -> bool:
    return item.path is not None and Path(os.path.abspath(item.path)).is_relative_to(folder)  # noqa: PTH100


def _without_twins(listing: Listing, taken: set[str]) -> Listing:
    """Each place once, each name once: ``x-2.jpg`` follows ``x.jpg`` where a name comes again."""
    places, items = set(), []
    for item in listing.items:
        if item.place in places:
            continue
        places.add(item.place)
        name, number = item.name, 2
        while name in taken:
            pure = PurePosixPath(item.name)
            name = pure.with_name(f"{pure.stem}-{number}{pure.suffix}").as_posix()
            number += 1
        taken.add(name)
        items.append(item if name == item.name else replace(item, name=name))
    return replace(listing, items=items)


def _listing(source: str, pictures: str | None) -> Listing:
    lower = source.lower()
    if lower.endswith(COMPRESSED):
        raise SourceError(
            f"{source} is compressed: its members cannot be read one by one, as a run that "
            "resumes has to. Unpack it to a plain .tar first."
        )
    kinds: tuple[tuple[tuple[str, ...], Callable[[str], Listing]], ...] = (
        (LISTS, _of_list),
        (COCO, lambda place: _of_coco(place, pictures)),
        (PARQUET, parquet_items),
        (TAR, tar_items),
        ((*SUFFIXES, *VIDEO_SUFFIXES), _of_file),
    )
    if _is_glob(source):
        return _of_glob(source)
    if _folder(source):
        return _of_folder(source)
    if not exists(source):
        raise SourceError(f"The source {source} does not exist (looked in {Path.cwd()}).")
    for suffixes, make in kinds:
        if lower.endswith(suffixes):
            return _filled(make(_absolute(source)), source)
    raise SourceError(
        f"The source {source} is of no kind that is read. Give a folder, a glob ('photos/*.jpg'), "
        "a list of paths (.txt), a COCO file (.json), Parquet, a .tar, a picture or a video."
    )


def _filled(listing: Listing, source: str) -> Listing:
    if not listing.items:
        told = " " + " ".join(listing.notes) if listing.notes else ""
        raise SourceError(f"The source {source} holds no picture and no video.{told}")
    return listing


def _is_glob(source: str) -> bool:
    return glob.has_magic(source) and not (not is_url(source) and Path(source).exists())


def _folder(source: str) -> bool:
    if not is_url(source):
        return is_folder(checked_path(source, SourceError))
    with native_errors(lambda error: SourceError(f"{source} cannot be listed: {error}.")):
        system, path = file_system(source)
        return bool(system.isdir(path))


def _absolute(source: str) -> str:
    """The same wherever it is called from: names of runs and stamps do not depend on it."""
    return source if is_url(source) else str(Path(source).absolute())


def _of_file(source: str) -> Listing:
    return Listing(root=source, items=[_item(source, PurePosixPath(source).name)])


def _item(place: str, name: str, stamp: str | None = None) -> Item:
    return Item(
        name=name,
        place=WholeFile(file=place),
        stamp=stamp_of(place) if stamp is None else stamp,
        kind="video" if _is_video(place) else "picture",
    )


def _is_video(place: str) -> bool:
    suffix = PurePosixPath(place).suffix.lower()
    return suffix in VIDEO_SUFFIXES and suffix not in SUFFIXES


def _of_folder(source: str) -> Listing:
    if is_url(source):
        return _of_remote(source, "")
    root = Path(source).absolute()
    try:
        found = listing_of_folder(root, recursive=True)
    except SamforgeError as error:
        raise SourceError(str(error)) from error
    videos = [one for one in found.others if _is_video(one.name)]
    others = [one.name for one in found.others if not _is_video(one.name)]
    files = sorted([*found.images, *videos], key=lambda one: one.relative_to(root).parts)
    notes = []
    if found.folders:
        few = ", ".join(one.name for one in found.folders[:3])
        notes.append(
            f"{source}: {len(found.folders)} folders are links or cannot be listed, and were not "
            f"looked into ({few})."
        )
    if others:
        few = ", ".join(others[:3])
        notes.append(f"{source}: {len(others)} files are no pictures by name ({few}).")
    items = [_item(str(one), one.relative_to(root).as_posix()) for one in files]
    return _filled(Listing(root=str(root), items=items, notes=tuple(notes)), source)


def _of_glob(source: str) -> Listing:
    fixed = source[: next(i for i, letter in enumerate(source) if letter in "*?[")]
    root = fixed.rpartition("/")[0] or ("/" if source.startswith("/") else ".")
    if is_url(source):
        return _of_remote(root, source)
    base = Path(root).absolute()
    paths = [Path(one).absolute() for one in glob.glob(source, recursive=True)]  # noqa: PTH207
    files = sorted(
        (one for one in paths if one.is_file() and _is_read(one.name)),
        key=lambda one: one.relative_to(base).parts,
    )
    items = [_item(str(one), one.relative_to(base).as_posix()) for one in files]
    return _filled(Listing(root=str(base), items=items), source)


def _is_read(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES)


def _of_remote(root: str, pattern: str) -> Listing:
    """Files below a URL, or those of a pattern, which means what it does on this machine."""
    with native_errors(lambda error: SourceError(f"{root} cannot be listed: {error}.")):
        system, base = file_system(root)
        if pattern:
            found = system.glob(file_system(pattern)[1], detail=True)
            entries = {name: entry for name, entry in found.items() if entry["type"] == "file"}
        else:
            entries = system.find(base, detail=True)
    base = base.rstrip("/") + "/"
    names = sorted(
        (name for name in entries if _is_read(name) and not _hidden(name.removeprefix(base))),
        key=lambda name: name.split("/"),
    )
    items = [
        _item(system.unstrip_protocol(name), name.removeprefix(base), stamp_of_entry(entries[name]))
        for name in names
    ]
    return _filled(Listing(root=root, items=items), pattern or root)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _of_list(source: str) -> Listing:
    with opened(source) as file, native_errors(lambda error: _no_list(source, error)):
        lines = file.read().decode("utf-8").splitlines()
    folder = "" if is_url(source) else str(Path(source).absolute().parent)
    places = [
        line if is_url(line) or line.startswith("/") or not folder else f"{folder}/{line}"
        for line in (one.strip() for one in lines)
        if line and not line.startswith("#")
    ]
    places = list(dict.fromkeys(places))
    items = [_item(place, name) for place, name in zip(places, shared_names(places), strict=True)]
    return Listing(root=source, items=items)


def _no_list(source: str, error: BaseException) -> SourceError:
    return SourceError(f"{source} is no list of paths, one a line, in UTF-8: {error}.")


def _of_coco(source: str, pictures: str | None) -> Listing:
    with opened(source) as file, native_errors(lambda error: _no_coco(source, error)):
        table = json.loads(file.read())
    if not isinstance(table, dict) or not isinstance(table.get("images"), list):
        raise _no_coco(source, "it has no list of images")
    beside = source.rpartition("/")[0] or "."
    folder = pictures or (beside if is_url(source) else str(Path(beside).absolute()))
    items = list(_coco_items(table["images"], source, folder))
    strange = sum(one.given_id is None for one in items)
    note = (
        f"{source}: {strange} of {len(items)} images have an id that another has too, that is no "
        f"whole number, or that is above {MOST_ID:,}. All pictures are numbered anew."
    )
    return Listing(root=folder, items=items, notes=(note,) if strange else ())


def _coco_items(images: Sequence[object], source: str, folder: str) -> Iterator[Item]:
    seen: set[int] = set()
    for number, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str):
            raise _no_coco(source, f"image {number} has no file_name")
        given = image.get("id") if isinstance(image, dict) else None
        whole = isinstance(given, int) and not isinstance(given, bool)
        usable = whole and abs(given) <= MOST_ID and given not in seen  # type: ignore[arg-type]
        if usable:
            seen.add(given)  # type: ignore[arg-type]  # an int
        item = _item(f"{folder.rstrip('/')}/{name}", name)
        yield replace(item, given_id=given if usable else None)


def _no_coco(source: str, error: object) -> SourceError:
    return SourceError(
        f"{source} is no COCO file: {error}. Give one with a list of images, each with a file_name."
    )
