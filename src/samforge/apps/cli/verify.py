"""``samforge verify``: does a bundle compute on this machine what fp32 computes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, print_table
from samforge.apps.cli.places import DeviceOption, DigestOption

if TYPE_CHECKING:
    from samforge.workflows.verify import Verification


def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    device: DeviceOption = "auto",
    digest: DigestOption = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record/--no-record",
            help="Write the result into the bundle, which gets a new digest, or leave it as it is.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle here and compare it with what fp32 gave when it was built.

    The segmenter that this machine uses is asked about pictures that the bundle carries; with a
    tracker it clicks on them and follows objects, too. Engines
    are built for GPUs that the builder need not have: every part of those runs on tensors that the
    bundle carries as well. The command fails where anything differs from what fp32 gave.
    """
    from samforge.workflows.verify import verify as verified

    found = verified(bundle, device=device, digest=digest, record=record)
    if as_json:
        print_json("verify", {"verification": found})
        return
    if found.tensors:
        _print_tensors(found)
    if found.evidence is not None:
        print_table(
            f"Found in {found.evidence.images} pictures, against fp32",
            ("gate", "figure", "limit"),
            [(gate, f"{value:.4f}", f"{limit:g}") for gate, (value, limit) in found.gates.items()],
            numbers=("figure", "limit"),
        )
        print_line(
            f"{found.evidence.questions} questions, {found.evidence.objects} objects that fp32 "
            "finds." + (f" {found.tracking.in_words()}." if found.tracking is not None else "")
        )
    if found.tracker_unproven:
        print_note(
            "Clicks and tracks were not verified: this bundle carries nothing to hold them to. "
            "Build it again."
        )
    print_line(
        f"Verified on {found.processor} in {found.seconds:.1f} s: every gate holds.", style="green"
    )
    if found.recorded:
        print_line(f"The bundle remembers it, and has a new digest: {found.digest}")
    elif record:
        print_note(f"{found.bundle} cannot be written, so it does not remember this.")


def _print_tensors(found: Verification) -> None:
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
    print_line(f"Every cosine is at least {found.limit:g}.")
