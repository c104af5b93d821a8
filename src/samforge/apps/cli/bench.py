"""``samforge bench``: how fast bundles are, against each other and stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import samforge
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, print_table
from samforge.apps.cli.places import DeviceOption, DigestsOption, opened_bundles
from samforge.apps.cli.progress import progress_bar
from samforge.core.errors import SettingError

if TYPE_CHECKING:
    from samforge.apps.cli.bench_tables import Conditions
    from samforge.workflows.bench import BenchPlan, BenchRow

_ROUNDS = 30


def bench(  # noqa: PLR0913  every argument is an option that a user types
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Folders that samforge build made.")
    ],
    *,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Images in a call. Repeat it.", show_default="1"),
    ] = None,
    prompts: Annotated[
        list[int] | None,
        typer.Option(
            "--prompts", min=1, help="Phrases asked of an image. Repeat it.", show_default="1"
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", min=1, help="Rounds.", show_default=str(_ROUNDS)),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds", help="Begin no round after this many seconds.", show_default="no limit"
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option("--warm-up", min=0, help="Rounds before those that count.")
    ] = 3,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="BUNDLE",
            help="Bundle that speed-ups are measured against.",
            show_default="the first fp32 one",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image", help="Image to run on.", show_default="drawn scenes (tiny) or noise"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Processor threads.", show_default="all cores"),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory", help="Measure memory too: each bundle is loaded once more."
        ),
    ] = True,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for a README instead of tables.")
    ] = False,
    device: DeviceOption = "auto",
    digest: DigestsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure bundles in turn: latency, throughput, memory, size, speed-up, and every stage.

    All bundles are loaded at once and run round by round, so that ratios are fair.
    """
    from samforge.measure import Budget
    from samforge.workflows.bench import BenchPlan, baseline_among, rows_of
    from samforge.workflows.bench_subjects import Case

    if markdown and as_json:
        raise SettingError("--markdown and --json are two forms of one result. Give one of them.")
    if iterations is None and seconds is None:
        iterations = _ROUNDS
    budget = Budget(warm_up=warm_up, iterations=iterations, seconds=seconds)
    opened = _opened(bundles, baseline, digest)
    plan = BenchPlan(
        bundles=opened,
        cases=tuple(
            Case(batch=one, prompts=other)
            for one in dict.fromkeys(batch or [1])
            for other in dict.fromkeys(prompts or [1])
        ),
        budget=budget,
        baseline=baseline_among(opened) if baseline is None else 0,
        image=samforge.read_image(image) if image is not None else None,
        device=device,
        threads=threads,
        memory=memory,
    )
    total = None if iterations is None else warm_up + iterations
    with progress_bar("rounds", total, as_json=as_json) as done:
        rows = rows_of(plan, done=done, note=print_note)
    conditions = _conditions(plan, rows, image)
    if as_json:
        base = rows[plan.baseline].bundle
        print_json("bench", {"baseline": base, "conditions": conditions, "rows": rows})
    elif markdown:
        _print_markdown(rows, conditions)
    else:
        _print(rows, conditions)


def _opened(
    paths: list[Path], baseline: Path | None, digests: list[str] | None
) -> tuple[samforge.Bundle, ...]:
    """Open each bundle once, the baseline first."""
    wanted = ([baseline] if baseline is not None else []) + paths
    unique = {path.resolve(): path for path in wanted}
    return opened_bundles(list(unique.values()), digests)


def _conditions(plan: BenchPlan, rows: tuple[BenchRow, ...], image: Path | None) -> Conditions:
    import datetime as dt
    from importlib.metadata import version

    from samforge.apps.cli.bench_tables import Conditions, hardware_words
    from samforge.workflows.bench_inputs import input_words
    from samforge.workflows.machine import this_machine
    from samforge.workflows.vocabulary import knows_scenes

    machine = this_machine()
    return Conditions(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        processor=hardware_words(machine),
        gpus=tuple(f"{gpu.name}, driver {gpu.driver}" for gpu in machine.gpus),
        versions={
            "samforge": samforge.__version__,
            "Python": machine.python,
            "numpy": version("numpy"),
            **{row.target: row.runtime for row in rows},
        },
        input=input_words([knows_scenes(bundle) for bundle in plan.bundles], image),
        warm_up=plan.budget.warm_up,
        rounds=rows[0].total.samples,
    )


def _print_markdown(rows: tuple[BenchRow, ...], conditions: Conditions) -> None:
    from samforge.apps.cli.bench_tables import markdown_from_rows

    for line in markdown_from_rows(rows, conditions).splitlines():
        print_line(line)


def _print(rows: tuple[BenchRow, ...], conditions: Conditions) -> None:
    from samforge.apps.cli.bench_tables import (
        BUNDLE,
        CASE,
        SPEED,
        bundle_rows,
        speed_rows,
        stage_columns,
        stage_rows,
    )

    stages = stage_columns(rows)
    columns: tuple[str, ...] = (*CASE, *SPEED)
    print_table("From images to masks", columns, speed_rows(rows), numbers=columns[1:])
    title = "Median ms by stage (text runs once for a phrase and is not in the total)"
    print_table(title, stages, stage_rows(rows), numbers=stages[1:])
    columns = ("bundle", *BUNDLE)
    print_table("Bundles", columns, bundle_rows(rows), numbers=columns[3:])
    for gpu in conditions.gpus:
        print_line(gpu)
    print_line(conditions.processor)
    print_line(", ".join(f"{name} {version}" for name, version in conditions.versions.items()))
    print_line(
        f"{conditions.rounds} rounds after {conditions.warm_up} of warm-up, bundles in turn; "
        f"input: {conditions.input}."
    )
