"""``samforge verify``: does a bundle compute on this machine what fp32 computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, print_table
from samforge.apps.cli.places import DigestOption


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle here and compare it with what fp32 gave when it was built.

    Engines are built for GPUs that the builder need not have. The command runs every part on inputs
    that the bundle carries and compares the outputs with the fp32 ones beside them. It fails where
    they differ.
    """
    from samforge.workflows.verify import verify as verified

    found = verified(bundle, digest=digest)
    if as_json:
        print_json("verify", {"verification": found})
        return
    print_table(
        f"{found.target} {found.precision} against fp32",
        ("part", "tensor", "cosine", "SQNR dB", "max diff"),
        [
            (
                one.part,
                one.fidelity.tensor,
                f"{one.fidelity.cosine:.5f}",
                f"{one.fidelity.sqnr_db:.1f}",
                f"{one.fidelity.max_abs:.3g}",
            )
            for one in found.tensors
        ],
        numbers=("cosine", "SQNR dB", "max diff"),
    )
    print_line(
        f"Verified on {found.processor} in {found.seconds:.1f} s: every cosine is at least "
        f"{found.limit:g}.",
        style="green",
    )
    if found.recorded:
        print_line(f"The bundle remembers it, and has a new digest: {found.digest}")
    else:
        print_note(f"{found.bundle} cannot be written, so it does not remember this.")
