"""``samforge video``: finds what phrases name in a video, and writes it as an overlay video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DeviceOption, DigestOption, OverwriteOption, check_outputs
from samforge.apps.cli.progress import progress_bar
from samforge.core.errors import Interrupted, PromptError, SettingError, VideoError
from samforge.core.files import writable_folder
from samforge.workflows.interrupts import termination_interrupts

if TYPE_CHECKING:
    from samforge.workflows.video import VideoPlan, VideoResult

MOST_NAMED = 10
"""Frames that failed are named one by one up to here; --json names all."""


def video(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="Video file to segment.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Video file to write: .mp4, .m4v or .mov.")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="What to find: 'red circle'. Repeat it for several phrases."),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Keep what scores above this, 0 to 1.")
    ] = 0.5,
    threshold_for: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold-for",
            metavar="PHRASE=NUMBER",
            help="The same for one phrase: 'red circle=0.4'. Repeat it.",
        ),
    ] = None,
    mask_threshold: Annotated[
        float, typer.Option("--mask-threshold", help="Mask the pixels above this, 0 to 1.")
    ] = 0.5,
    max_detections: Annotated[
        int | None,
        typer.Option(
            "--max-detections",
            min=1,
            help="Keep the N best scores of each frame, over all phrases.",
            show_default="all",
        ),
    ] = None,
    every: Annotated[
        int,
        typer.Option("--every", min=1, help="Keep every Nth frame only: 1 keeps all."),
    ] = 1,
    max_frames: Annotated[
        int | None,
        typer.Option("--max-frames", min=1, help="Stop after N frames.", show_default="all"),
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            "--coco", help="COCO file to write, with every frame's masks.", show_default="none"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Processor threads.", show_default="all cores"),
    ] = None,
    device: DeviceOption = "auto",
    digest: DigestOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what phrases name in each frame of a video; write it with masks and a readout.

    The times of the frames stay as they are. Ctrl-C and SIGTERM finish the file with the frames
    done so far.
    """
    from samforge.runtime import Thresholds
    from samforge.workflows.scores import thresholds_from_texts
    from samforge.workflows.video import VideoPlan

    plan = VideoPlan(
        video=source,
        out=out.absolute(),
        coco=coco.absolute() if coco is not None else None,
        text=_phrases(text),
        thresholds=Thresholds(score=threshold, mask=mask_threshold, max_detections=max_detections),
        own_thresholds=thresholds_from_texts(threshold_for or (), text or ()),
        every=every,
        max_frames=max_frames,
    )
    _check_files(plan, overwrite=overwrite)
    opened = samforge.open_bundle(bundle, digest=digest)
    result = _run(opened, plan, device=device, threads=threads, as_json=as_json)
    if as_json and not result.interrupted:
        _print_json(opened, plan, result)
    elif not as_json:
        _print(plan, result)
    if result.interrupted:
        raise Interrupted(
            f"Stopped after {result.frames} frames. {shown_path(plan.out)} holds them and plays."
        )
    if result.problem is not None:
        raise typer.Exit(VideoError.exit_code)
    if result.failures:
        raise typer.Exit(result.failures[0].exit_code)


def _phrases(text: list[str] | None) -> tuple[str, ...]:
    if not text:
        raise PromptError("There is nothing to find. Give --text 'red circle'.")
    if any(not phrase.strip() for phrase in text):
        raise PromptError("A phrase is empty. Give words, such as --text 'red circle'.")
    return tuple(dict.fromkeys(text))


def _check_files(plan: VideoPlan, *, overwrite: bool) -> None:
    """Find what is wrong with the files before a model is loaded.

    Raises:
        VideoError: The video cannot be opened.
        SettingError: One file would be written over another.
        OutputError: A folder cannot be written, a file would lie in a bundle, or one is there that
            samforge did not write.
    """
    from samforge.media import VIDEO_SUFFIXES, VideoReader

    if plan.out.suffix.lower() not in VIDEO_SUFFIXES:
        raise SettingError(
            f"--out is a video file that ends in {', '.join(VIDEO_SUFFIXES)}, got {plan.out.name}."
        )
    with VideoReader(plan.video):
        pass
    files = {"--out": plan.out} | ({"--coco": plan.coco} if plan.coco is not None else {})
    taken = {plan.video.resolve(): "the video that is read"}
    for option, path in files.items():
        if path.resolve() in taken:
            raise SettingError(
                f"{option} {shown_path(path)} is {taken[path.resolve()]}. Give another name."
            )
        taken[path.resolve()] = f"what {option} writes"
        if path.is_dir():
            raise SettingError(f"{option} {shown_path(path)} is a folder. Give a file in it.")
        check_outputs([path], overwrite=overwrite, option=option)
        writable_folder(path.parent)


def _run(
    bundle: samforge.Bundle, plan: VideoPlan, *, device: str, threads: int | None, as_json: bool
) -> VideoResult:
    from dataclasses import replace

    from samforge.media import VideoReader
    from samforge.workflows.video import segment_video_file

    manifest = bundle.manifest
    if manifest.recipe.get("random_weights"):
        print_note(f"{bundle.root} has random weights: what it finds means nothing.")
    segmenter = samforge.load(bundle, device=device, threads=threads)
    precision = manifest.recipe.get("precision", "")
    plan = replace(plan, title=f"{manifest.target} {precision}".strip())
    with VideoReader(plan.video) as reader:
        total = plan.expected(reader.info)
    with progress_bar("frames", total, as_json=as_json) as done, termination_interrupts():
        return segment_video_file(segmenter, plan, done=done)


def _print_json(bundle: samforge.Bundle, plan: VideoPlan, result: VideoResult) -> None:
    payload: dict[str, Any] = {
        "bundle": bundle.root,
        "video": plan.video,
        "out": plan.out,
        "coco": plan.coco,
        "frames": result.frames,
        "size_hw": result.size_hw,
        "frame_rate": float(result.info.frame_rate),
        "complete": result.problem is None,
        "seconds": round(result.seconds, 3),
        "fps": round(result.frames / result.seconds, 3),
        "stages": result.stages,
        "detections": {
            "count": result.detections,
            "mean_per_frame": result.detections / result.frames,
            "most_in_frame": result.most_in_frame,
            "frames_without": result.frames_without,
            "phrases": result.phrases,
        },
        "failures": result.failures,
        "notes": result.notes,
    }
    if result.failures:
        first = result.failures[0]
        payload["error"] = {
            "kind": first.kind,
            "message": f"Frame {first.frame}: {first.message}",
            "exit_code": first.exit_code,
        }
    if result.problem is not None:
        payload["error"] = {
            "kind": VideoError.__name__,
            "message": result.problem,
            "exit_code": VideoError.exit_code,
        }
    print_json("video", payload, ok=result.problem is None and not result.failures)


def _print(plan: VideoPlan, result: VideoResult) -> None:
    frames = result.frames
    print_table(
        f"{plan.video.name}: {frames} frames",
        ("phrase", "found", "in frames", "best score"),
        [
            (phrase, tally.detections, tally.frames, f"{tally.best_score:.3f}")
            for phrase, tally in result.phrases.items()
        ],
        numbers=("found", "in frames", "best score"),
    )
    print_table(
        "Time of a frame (stages of different frames overlap)",
        ("stage", "mean ms", "median ms", "p95 ms", "ran on"),
        [
            (
                one.stage,
                *(
                    f"{value:.1f}"
                    for value in (one.latency.mean_ms, one.latency.median_ms, one.latency.p95_ms)
                ),
                one.processor,
            )
            for one in result.stages
        ],
        numbers=("mean ms", "median ms", "p95 ms"),
    )
    print_line(f"{result.seconds:.1f} s, {frames / result.seconds:.1f} frames a second.")
    for note in result.notes:
        print_note(note)
    for path in filter(None, (plan.out, plan.coco)):
        print_line(f"Written to {shown_path(path)}", style="green")
    for one in result.failures[:MOST_NAMED]:
        print_note(f"{one.kind}: Frame {one.frame}: {one.message}", style="red")
    if result.failures:
        print_note(
            f"{len(result.failures)} of {frames} frames could not be segmented.", style="red"
        )
    if result.problem is not None:
        print_note(
            f"{VideoError.__name__}: {result.problem} What could be read is done.", style="red"
        )
