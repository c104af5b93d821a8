"""``samforge label``: labels a whole source by an ontology, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import samforge
from samforge.apps.cli.label_output import print_plan, print_result, watched
from samforge.apps.cli.output import JsonOption, print_note
from samforge.apps.cli.places import DeviceOption, DigestOption
from samforge.core.errors import SettingError

if TYPE_CHECKING:
    from samforge.labelling import MakeEngine, Ontology


def label(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folder, 'glob*.jpg', list of paths (.txt), COCO file (.json), Parquet, .tar, "
            "picture or video; paths, or URLs that fsspec opens.",
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the data sets: new, or of an earlier run.")
    ],
    ontology: Annotated[
        Path | None,
        typer.Option("--ontology", help="TOML file of the classes.", show_default="--class"),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME=PHRASE,PHRASE",
            help="A class and the phrases that find it: 'car=car,automobile'. Repeat it.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Keep what scores above this, where a class does not say otherwise.",
            show_default="the ontology's, or 0.5",
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="coco, coco-polygons, yolo, parquet, sa1b, masks, ids, labelstudio, cvat or "
            "labelme. Repeat it for several.",
            show_default="coco",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Folder of a COCO file's pictures.", show_default="beside the file"
        ),
    ] = None,
    copy_pictures: Annotated[
        bool,
        typer.Option(
            "--copy-images", help="Copy pictures into data sets that hold them; no links."
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Label the first N only.", show_default="all"),
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(
            "--shuffle",
            metavar="SEED",
            help="Work in a random order, which --limit cuts off.",
            show_default="the source's order",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Processes side by side, one a device.")
    ] = 1,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="local (this machine) or ray (the cluster that this process belongs to, --jobs "
            "actors).",
        ),
    ] = "local",
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Pictures in one call.",
            show_default="1 on a processor, 8 on a GPU",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    review: Annotated[
        bool,
        typer.Option("--review", help="Rank pictures by doubt; show the most unsure on a page."),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="OUT",
            help="With --review: another run's output, of another bundle; where both disagree "
            "comes first.",
            show_default="no other",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Give up the labels of earlier runs in --out.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Processor threads of each process.", show_default="all cores"
        ),
    ] = None,
    device: DeviceOption = "auto",
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label a data set: what you have becomes COCO, YOLO, Parquet and more, by an ontology.

    A run that is stopped, however hard, goes on where it was when the same command is given again,
    and ends with the same files. Pictures that cannot be labelled are listed in failures.jsonl and
    stop nothing.
    """
    from samforge.labelling import LabelSettings, plan_labels, review_labels

    chosen = _engine(engine)
    if against is not None and not review:
        raise SettingError("--against says what a review compares with. Add --review.")
    settings = LabelSettings(
        formats=tuple(formats or ("coco",)),
        device=device,
        threads=threads,
        jobs=jobs,
        batch=batch,
        limit=limit,
        shuffle=shuffle,
        pictures=pictures,
        copy_pictures=copy_pictures,
        restart=restart,
    )
    wanted = _ontology(ontology, classes or [], threshold)
    opened = samforge.open_bundle(bundle, digest=digest)
    if dry_run:
        plan = plan_labels(opened, source, wanted, out, settings=settings)
        print_plan(opened, wanted, out, plan, as_json=as_json)
        return
    _warn(opened)
    with watched(as_json=as_json) as watch:
        result = samforge.label(
            opened, source, wanted, out, settings=settings, watch=watch, engine=chosen
        )
    shown = None
    if review:
        shown = review_labels(opened, source, wanted, out, settings=settings, against=against)
    print_result(opened, result, shown, as_json=as_json)
    if result.failures:
        raise typer.Exit(result.failures[0].exit_code)


def _ontology(file: Path | None, classes: list[str], threshold: float | None) -> Ontology:
    from samforge.labelling import Ontology

    if (file is None) == (not classes):
        raise SettingError(
            "Say what to label: either --ontology FILE, or --class 'car=car,automobile' once for "
            "each class."
        )
    ontology = Ontology.from_texts(classes) if file is None else Ontology.from_toml(file)
    return ontology.with_settings(threshold=threshold)


def _engine(name: str) -> MakeEngine:
    from samforge.apps.ray import ray_engine
    from samforge.labelling import local_engine

    engines = {"local": local_engine, "ray": ray_engine}
    if name not in engines:
        raise SettingError(f"There is no engine {name!r:.40}. There are {', '.join(engines)}.")
    return engines[name]


def _warn(bundle: samforge.Bundle) -> None:
    from samforge.core.manifest import verified

    if bundle.manifest.recipe.get("random_weights"):
        print_note(f"{bundle.root} has random weights: what it labels means nothing.")
    elif not verified(bundle.manifest):
        print_note(f"{bundle.root} was not verified on hardware: run samforge verify first.")
