"""What commands may open and where they may write: options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

import samforge
from samforge.core.errors import DamagedBundle

DeviceOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to run: auto (what the bundle was built for), cpu, cuda, or a GPU by number, "
        "such as cuda:1.",
    ),
]
"""What ``samforge.load`` takes as its device."""
DigestOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--digest",
        metavar="SHA256",
        help="Refuse any other bundle than the one of this digest, as build and inspect print it.",
        show_default="any bundle",
    ),
]
"""Pins the bundle that was reviewed."""
DigestsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--digest",
        metavar="SHA256",
        help="Refuse bundles of any other digest, as build and inspect print it. Repeat it, one "
        "for each bundle.",
        show_default="any bundle",
    ),
]
"""The same where a command takes several bundles."""
OverwriteOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Write over files of these names that samforge did not write."
    ),
]
"""Allows what ``require_own`` refuses."""


def opened_bundles(
    paths: Sequence[Path], digests: Sequence[str] | None
) -> tuple[samforge.Bundle, ...]:
    """Open bundles; where digests are pinned, each of them has to have one of these.

    Raises:
        BundleError: One is no bundle, damaged, or another than those reviewed.
        SettingError: A digest is none.
    """
    from samforge.core.bundle import checked_digest

    pinned = {checked_digest(digest) for digest in digests or ()}
    opened = []
    for path in paths:
        bundle = samforge.open_bundle(path)
        if pinned and bundle.digest not in pinned:
            raise DamagedBundle(
                f"{bundle.root} is none of the bundles that were asked for: its digest is "
                f"{bundle.digest}. Review it, and pin it with --digest as well."
            )
        opened.append(bundle)
    return tuple(opened)


def check_outputs(paths: Iterable[Path], *, overwrite: bool, option: str = "--out") -> None:
    """Refuse, before anything runs, to write into a bundle or over a file of the user's.

    Raises:
        OutputError: With what is in the way.
    """
    from samforge.core.outputs import require_own
    from samforge.core.own_folder import require_outside_bundles

    files = list(paths)
    for path in files:
        require_outside_bundles(path, option)
    require_own(files, overwrite=overwrite)
