"""Run Meta's SAM 3 beside samforge, on your weights, and print how far the two are apart.

    python tools/compare_with_meta.py --checkout ../sam3 --checkpoint sam3.pt --images pictures \
        --phrases "yellow school bus" "man’s hat"

``--checkout`` is a folder of https://github.com/facebookresearch/sam3; it is imported, and left as
it is. Without ``--checkpoint`` the network gets random weights, drawn from the names of its
tensors, the same on both sides. Without ``--bundle`` samforge runs its parts eagerly.
docs/compare-with-meta.md tells what the table says, and how to send it to us.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from meta_comparison.running import Outcome, compare
from meta_comparison.settings import DEVICES, PHRASES, PRECISIONS, Settings, phrases_from_file
from meta_comparison.tables import LEGEND, summary_of, table_of
from samforge.core.errors import SamforgeError, SettingError
from samforge.core.reference import META, REFERENCES
from samforge.core.structure import json_from_value


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and give an exit status: 0, or that of the error."""
    options = parser().parse_args(arguments)
    try:
        settings = settings_from_options(options)
        if options.json is not None and not options.json.parent.is_dir():
            raise SettingError(f"--json {options.json}: the folder is not there. Make it first.")
        with contextlib.ExitStack() as stack:
            folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            outcome = compare(settings, folder.resolve())
    except SamforgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    show(outcome)
    if options.json is not None:
        plain = json_from_value(outcome.to_dict())
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Meta's side runs in a process of its own, and may have another interpreter.",
    )
    add = made.add_argument
    add("--checkout", type=Path, required=True, help="a checkout of facebookresearch/sam3")
    add("--checkpoint", type=Path, help="Meta's sam3.pt; weights are drawn without it")
    add("--bundle", type=Path, help="a samforge bundle of that checkpoint; else eager parts")
    add("--images", type=Path, help="a folder of pictures, or one; else drawn scenes")
    add("--scenes", type=int, default=2, help="how many scenes to draw")
    add("--phrases", nargs="+", metavar="PHRASE", help=f"else {', '.join(map(repr, PHRASES))}")
    add("--phrases-file", type=Path, help="UTF-8 text, one phrase a line")
    for name, what in (("--box", "find"), ("--negative-box", "leave out")):
        add(
            name,
            type=float,
            nargs=4,
            action="append",
            default=[],
            metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
            help=f"a box to {what} the like of, fractions of the picture; repeatable",
        )
    add("--device", choices=DEVICES, default="cpu", help="where both sides compute")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16: autocast too, as Meta's examples",
    )
    add(
        "--reference",
        choices=REFERENCES,
        default=META,
        help="whose computation the eager parts follow",
    )
    add(
        "--threshold",
        type=float,
        help="objects score above it; else 0.5, or a gap for drawn weights",
    )
    add("--seed", type=int, default=0, help="of drawn weights")
    add("--small", action="store_true", help="draw a network with few layers in its two encoders")
    add("--keep-weights", type=Path, metavar="FILE", help="keep the drawn weights, as a sam3.pt")
    add("--tokenizer", type=Path, help="a tokenizer.json; else made from the checkout's vocabulary")
    add(
        "--meta-python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter for Meta's side",
    )
    add(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep Meta's answers there instead of in a temporary folder",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure there as well")
    return made


def settings_from_options(options: argparse.Namespace) -> Settings:
    """Check the options."""
    phrases = options.phrases or []
    if options.phrases_file is not None:
        phrases = [*phrases, *phrases_from_file(options.phrases_file)]
    boxes = [(*box, 1) for box in options.box] + [(*box, 0) for box in options.negative_box]
    named = {
        name: getattr(options, name)
        for name in (
            *("checkout", "checkpoint", "bundle", "images", "scenes", "device", "precision"),
            *("reference", "threshold", "seed", "small", "tokenizer", "meta_python"),
        )
    }
    return Settings(
        **named,
        phrases=tuple(phrases) if phrases else PHRASES,
        boxes=tuple(boxes),
        weights=options.keep_weights,
    )


def show(outcome: Outcome) -> None:
    """Print what was compared, a table for each pair of runs, and what is tokenized otherwise."""
    print(f"Meta's code: {outcome.checkout.describe()}")
    weights = outcome.record["weights"]
    print(f"Weights: {weights['from']}, {weights['digest'][:23]}…")
    if weights.get("bundle_of_this_file") is False:
        print("The bundle was built from another file: the weights may differ, too.")
    for comparison in outcome.comparisons:
        print(f"\n{table_of(comparison)}\n{summary_of(comparison)}")
    print(f"\n{LEGEND}")
    others = outcome.other_tokens
    print(
        f"\nPhrases that tokenize differently: {len(others)} of {len(outcome.phrases)}"
        + "".join(f"\n  {phrase!r}" for phrase in others)
    )


if __name__ == "__main__":
    sys.exit(main())
