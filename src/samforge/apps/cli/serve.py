"""``samforge serve``: bundles behind HTTP, for everybody who can send a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from samforge.apps.cli.output import print_line
from samforge.apps.cli.places import DigestsOption


def serve(  # noqa: PLR0913, PLR0917  # options of a command
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE",
            help="Folders that samforge build made; NAME=FOLDER gives one another name. The first "
            "answers where a request names none.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen at.", show_default="this machine alone"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8000,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Where to run: auto (what the bundle was built for), cpu, cuda, a GPU by its "
            "number, or several with commas: cuda:0,cuda:1.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Processor threads of each part.", show_default="all"),
    ] = None,
    digest: DigestsOption = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--tokens",
            metavar="FILE",
            help="Who may ask: a line NAME:TOKEN for each client. Without it, everybody on this "
            "machine may.",
        ),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Let other machines ask without a token.")
    ] = False,
    shadow: Annotated[
        str | None,
        typer.Option(
            "--shadow",
            metavar="NAME=SHARE",
            help="Ask this bundle again what the others were asked, a share of it: fp32=0.05. How "
            "far they differ is a metric.",
        ),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=NUMBER",
            help="Another limit, as GET /v1/models lists them: pixels=20e6. Repeat it.",
            show_default="docs/serving.md",
        ),
    ] = None,
    fetch_from: Annotated[
        list[str] | None,
        typer.Option(
            "--fetch-from",
            metavar="URL",
            help="Fetch pictures below this address for clients that send addresses, as Label "
            "Studio does. SAMFORGE_FETCH_AUTHORIZATION is sent along to the host of the first, and "
            "to no other. Repeat it.",
            show_default="no address is fetched",
        ),
    ] = None,
    drain: Annotated[
        float,
        typer.Option("--drain", help="Seconds that accepted requests have to end after SIGTERM."),
    ] = 30.0,
    notice: Annotated[
        float,
        typer.Option(
            "--notice",
            help="Seconds between becoming unready and closing the port, for load balancers.",
        ),
    ] = 0.0,
) -> None:
    """Answer questions about pictures over HTTP, each picture encoded once for everybody.

    The server is live at once, and ready when every bundle has held its proof on this machine:
    GET /health/ready. GET /docs shows what it speaks. Logs go to standard error, a line of JSON for
    each request. Ctrl-C or SIGTERM lets what was accepted end first.
    """
    from samforge.apps.cli.serving import (
        devices_from_text,
        limits_from_texts,
        shadowing_from_text,
        tokens_from_file,
    )
    from samforge.core.errors import MissingExtra
    from samforge.serving import Served, Settings, named

    try:
        from samforge.apps.serve.dialects.sources import ImageSources
        from samforge.apps.serve.door import Tokens
        from samforge.apps.serve.logs import log_to_stderr
        from samforge.apps.serve.run import Listening
        from samforge.apps.serve.run import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("samforge"):
            raise
        raise MissingExtra(str(error.name), "serve") from error
    folders = named(bundles)
    own_limits = limits_from_texts(limits or ())
    secret = os.environ.get("SAMFORGE_FETCH_AUTHORIZATION")
    listening = Listening(
        host=host,
        port=port,
        tokens=Tokens(by_name={} if tokens is None else tokens_from_file(tokens)),
        open_to_all=open_to_all,
        sources=ImageSources(
            prefixes=tuple(fetch_from or ()),
            authorization=secret,
            most_bytes=own_limits.request_bytes,
        ),
        drain_seconds=drain,
        notice_seconds=notice,
    )
    settings = Settings(
        bundles=tuple(
            Served(
                name=name,
                path=Path(folder),
                devices=devices_from_text(device),
                threads=threads,
                digests=tuple(digest or ()),
            )
            for name, folder in folders.items()
        ),
        limits=own_limits,
        shadowing=None if shadow is None else shadowing_from_text(shadow),
    )
    log_to_stderr()
    run(settings, listening, started=lambda url: print_line(f"Listening at {url}"))
