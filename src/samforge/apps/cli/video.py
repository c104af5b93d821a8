"""``samforge video``: finds and follows objects in a video, and writes it with their masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.finding import (
    MaskThresholdOption,
    NegativePointOption,
    TextOption,
    ThresholdForOption,
    ThresholdOption,
)
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
    from samforge.workflows.video import VideoResult
    from samforge.workflows.video_plan import VideoPlan

MOST_NAMED = 10
"""Frames that failed are named one by one up to here; --json names all."""


def video(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    source: Annotated[Path, typer.Argument(metavar="VIDEO", help="Video file to segment.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Video file to write: .mp4, .m4v or .mov.")],
    text: TextOption = None,
    threshold: ThresholdOption = 0.5,
    threshold_for: ThresholdForOption = None,
    mask_threshold: MaskThresholdOption = 0.5,
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
    tracks: Annotated[
        list[Path] | None,
        typer.Option(
            "--tracks",
            help="File of tracks to write: .jsonl (JSON lines), .txt (MOTChallenge) or .json "
            "(YouTube-VIS). Repeat it.",
            show_default="none",
        ),
    ] = None,
    track: Annotated[
        bool | None,
        typer.Option(
            "--track/--no-track",
            help="Follow objects, which keep their ids, or let each frame stand for itself.",
            show_default="track, where the bundle has a tracker",
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option("--point", help="Follow the object at x,y of the first frame. Repeat it."),
    ] = None,
    negative_point: NegativePointOption = None,
    object_box: Annotated[
        list[str] | None,
        typer.Option(
            "--object-box",
            help="Follow the object in left,top,right,bottom of the first frame. Repeat it for "
            "several.",
        ),
    ] = None,
    at: Annotated[
        int,
        typer.Option("--at", min=0, help="Points and object boxes are of this frame, from 0."),
    ] = 0,
    detect_every: Annotated[
        int,
        typer.Option(
            "--detect-every", min=1, help="Look for phrases on every Nth frame, and track between."
        ),
    ] = 1,
    max_objects: Annotated[
        int | None,
        typer.Option(
            "--max-objects", min=1, help="Follow at most N objects, the best.", show_default="all"
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
    """Find what phrases or clicks show in a video; write it with masks and a readout.

    A bundle with a tracker follows objects: each keeps its number and its colour.

    The times of the frames stay as they are. Ctrl-C and SIGTERM finish the files with the frames
    done so far.
    """
    from samforge.runtime import Thresholds, TrackingSettings
    from samforge.workflows.pointing import pointing_from_texts
    from samforge.workflows.thresholds import thresholds_from_texts
    from samforge.workflows.video_plan import VideoPlan, shown_at

    pointing = pointing_from_texts(point, negative_point, object_box)
    plan = VideoPlan(
        video=source,
        out=out.absolute(),
        coco=coco.absolute() if coco is not None else None,
        tracks=tuple(path.absolute() for path in tracks or ()),
        text=_phrases(text),
        prompts=shown_at(pointing, at) if pointing else (),
        track=track,
        tracking=TrackingSettings(detect_every=detect_every, most_objects=max_objects),
        thresholds=Thresholds(score=threshold, mask=mask_threshold, max_detections=max_detections),
        own_thresholds=thresholds_from_texts(threshold_for or (), text or ()),
        every=every,
        max_frames=max_frames,
    )
    plan.require_asked()
    _check_files(plan, overwrite=overwrite)
    opened = samforge.open_bundle(bundle, digest=digest)
    plan.follows(opened.manifest.parts)  # refuses what does not go together before it is loaded
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
    if any(not phrase.strip() for phrase in text or ()):
        raise PromptError("A phrase is empty. Give words, such as --text 'red circle'.")
    return tuple(dict.fromkeys(text or ()))


def _check_files(plan: VideoPlan, *, overwrite: bool) -> None:
    """Find what is wrong with the files before a model is loaded.

    Raises:
        VideoError: The video cannot be opened.
        SettingError: One file would be written over another.
        OutputError: A folder cannot be written, a file would lie in a bundle, or one is there that
            samforge did not write.
    """
    from samforge.formats import TRACK_SUFFIXES
    from samforge.media import VIDEO_SUFFIXES, VideoReader

    if plan.out.suffix.lower() not in VIDEO_SUFFIXES:
        raise SettingError(
            f"--out is a video file that ends in {', '.join(VIDEO_SUFFIXES)}, got {plan.out.name}."
        )
    with VideoReader(plan.video) as reader:
        plan.require_frames(reader.info)
    for path in plan.tracks:
        if path.suffix.lower() not in TRACK_SUFFIXES:
            raise SettingError(
                f"--tracks is a file that ends in {', '.join(TRACK_SUFFIXES)}, got {path.name}."
            )
    files = [("--out", plan.out), *(("--tracks", path) for path in plan.tracks)]
    files += [("--coco", plan.coco)] if plan.coco is not None else []
    taken = {plan.video.resolve(): "the video that is read"}
    for option, path in files:
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
        "tracks": plan.tracks,
        "follows": result.ids is not None,
        "detect_every": plan.tracking.detect_every,
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
            "objects": result.ids,
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
    if result.ids is not None:
        found = "1 object was" if result.ids == 1 else f"{result.ids} objects were"
        between = plan.tracking.detect_every
        every = f"; phrases were looked for on every {between}th frame" if between > 1 else ""
        print_line(f"{found} followed, each under its own number{every}.")
    print_line(f"{result.seconds:.1f} s, {frames / result.seconds:.1f} frames a second.")
    for note in result.notes:
        print_note(note)
    for path in filter(None, (plan.out, plan.coco, *plan.tracks)):
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
