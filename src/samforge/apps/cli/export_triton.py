"""``samforge export-triton``: a bundle as a model of a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, shown_path
from samforge.apps.cli.places import DigestOption


def export_triton(  # noqa: PLR0913, PLR0917  # options of a command
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The model repository: a new folder, or one with other models, which stay.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model.", show_default="that of the bundle's folder"),
    ] = None,
    link: Annotated[
        bool,
        typer.Option("--link", help="Name the bundle where it is, in place of a copy of it."),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Where to run: auto (what the bundle was built for), cpu, cuda (every GPU that "
            "Triton has), or GPUs by number, with commas: cuda:0,cuda:1.",
        ),
    ] = "auto",
    instances: Annotated[
        int,
        typer.Option("--instances", help="Processes on each device, each with its own parts."),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Processor threads of each part.", show_default="all"),
    ] = None,
    response_cache: Annotated[
        bool,
        typer.Option(
            "--response-cache",
            help="Let Triton answer a question that it was asked before from its cache.",
        ),
    ] = False,
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle as a model that tritonserver loads and serves.

    The model takes and gives the tensors of samforge serve's /v2. It runs in Triton's Python
    backend, so the Python of the server needs samforge, and it is ready once the bundle has held
    its proof there. An earlier export of this name is replaced; files of others are left alone.
    """
    from samforge.apps.cli.serving import devices_from_text
    from samforge.workflows.export_triton import TritonOptions
    from samforge.workflows.export_triton import export_triton as exported

    options = TritonOptions(
        name=name,
        link=link,
        devices=devices_from_text(device),
        instances=instances,
        threads=threads,
        response_cache=response_cache,
    )
    export = exported(bundle, out, options, digest=digest)
    if as_json:
        print_json("export-triton", {"export": export})
        return
    print_line(f"Wrote the model {export.name} to {shown_path(export.model)}", style="green")
    print_line(f"It loads {shown_path(export.bundle)}, digest {export.digest}.")
    print_note(
        f"tritonserver --model-repository {shown_path(export.repository)} serves it. The Python of "
        "its backend needs samforge and the bundle's runtime: docs/many-machines.md."
    )
