"""What to find: options that ``predict`` and ``video`` share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

TextOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--text", help="What to find: 'red circle'. Repeat it for several phrases."),
]
"""Phrases."""
NegativePointOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--negative-point", help="A place x,y beside that object. Repeat it."),
]
"""Where the object is not."""
ThresholdOption: TypeAlias = Annotated[
    float, typer.Option("--threshold", help="Keep what scores above this, 0 to 1.")
]
"""What counts as found."""
ThresholdForOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold-for",
        metavar="PHRASE=NUMBER",
        help="The same for one phrase: 'red circle=0.4'. Repeat it.",
    ),
]
"""What counts as found of one phrase."""
MaskThresholdOption: TypeAlias = Annotated[
    float, typer.Option("--mask-threshold", help="Mask the pixels above this, 0 to 1.")
]
"""What belongs to a mask."""
