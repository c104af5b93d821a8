"""``samforge doctor``: what is usable here, and what installs the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

import samforge
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_table
from samforge.core.targets import TARGETS
from samforge.workflows.environment import environment
from samforge.workflows.machine import Machine
from samforge.workflows.runtimes import (
    PackageReport,
    RuntimeReport,
)

if TYPE_CHECKING:
    from samforge.pipeline import Choice

MISSING = 3
"""Exit status when even the base runtime is not usable, the same as of a ``MissingExtra``."""


def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure which target and precision this processor is fastest with."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which runtimes, processors and versions are usable here, and what installs the rest."""
    here = environment()
    choices = _choices() if measure else ()
    if as_json:
        payload = {
            "samforge": here.samforge,
            "machine": here.machine,
            "runtimes": here.runtimes,
            "packages": here.packages,
            **({"processor_choices": choices} if measure else {}),
        }
        print_json("doctor", payload, ok=here.usable)
    else:
        _print_machine(here.machine)
        _print_runtimes(here.runtimes, here.packages)
        if measure:
            _print_choices(choices)
    if not here.usable:
        raise typer.Exit(MISSING)


def _choices() -> Sequence[Choice]:
    from samforge.pipeline import processor_choices

    return processor_choices()


def _print_choices(choices: Sequence[Choice]) -> None:
    rows = [
        (choice.target, choice.precision, f"{choice.block_ms:.1f}", f"{choice.speed_up:.2f}")
        for choice in choices
    ]
    columns = ("target", "precision", "ms a block", "times ORT fp32")
    print_table("This processor, fastest first", columns, rows, numbers=columns[2:])
    print_line(
        "One transformer block of SAM 3's size, random weights: speed alone. 'samforge build MODEL "
        "--target cpu' takes the first that holds the gates of the model."
    )


def _print_machine(machine: Machine) -> None:
    memory = f"{machine.memory_gib} GiB, {machine.memory_free_gib} free"
    rows = [
        ("samforge", samforge.__version__),
        ("Python", machine.python),
        ("system", machine.system),
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("instructions", ", ".join(machine.features) or None),
        ("memory", memory if machine.memory_gib is not None else None),
        ("disk", f"{machine.disk_free_gib} GiB free here"),
        ("GPU", machine.gpu_problem or "; ".join(map(str, _gpu_lines(machine))) or "none found"),
    ]
    print_table("This machine", ("what", "found"), rows)


def _gpu_lines(machine: Machine) -> list[str]:
    return [
        f"{gpu.name}, {gpu.memory_gib} GiB, sm {gpu.compute_capability}, driver {gpu.driver}"
        for gpu in machine.gpus
    ]


def _print_runtimes(runtimes: Sequence[RuntimeReport], packages: Sequence[PackageReport]) -> None:
    rows = [
        (r.name, r.version, "yes" if r.usable else "no", ", ".join(r.processors) or r.problem)
        for r in runtimes
    ]
    print_table("Runtimes", ("runtime", "version", "usable", "details"), rows)
    print_table("Packages", ("package", "version"), [(p.name, p.version) for p in packages])
    _print_missing(
        [(r.name, r.install) for r in runtimes] + [(p.name, p.install) for p in packages]
    )


def _print_missing(installs: Sequence[tuple[str, str | None]]) -> None:
    commands = dict.fromkeys(command for _, command in installs if command is not None)
    for command in commands:
        names = [name for name, install in installs if install == command]
        print_line(f"For {', '.join(names)}:  {command}")
    if not commands:
        print_line("Everything is installed.", style="green")
    print_line(f"Bundles can be built for {', '.join(TARGETS)}; cpu takes what is fastest here.")
