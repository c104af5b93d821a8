"""Runs of labelling that are killed at random moments, and the data sets that they end with."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _label_work import CLASSES, FORMATS, digest_of, draw

JOBS = 2


def kills(bundle: Path, work: Path, pictures: int, count: int, until: float) -> dict[str, Any]:
    """Kill runs until there were so many kills, or the time is over.

    A run that is killed is started again on the same folder, until it ends. Then its data set is
    compared with that of a run which nothing disturbed, and the next one begins with an empty
    folder.
    """
    source, out = work / "kills", work / "killed"
    draw(source, 0, pictures)
    generator = random.Random(0)
    start = time.monotonic()
    _run(_command(bundle, source, work / "whole"))
    whole = time.monotonic() - start
    unbroken = digest_of(work / "whole")
    moments: list[float] = []
    sets: list[dict[str, Any]] = []
    own = 0

    def compare() -> None:
        found = digest_of(out)
        sets.append({"kills": own, "same": found == unbroken, "sha256": found})
        print("ended after", own, "kills:", "same" if sets[-1]["same"] else "OTHER", flush=True)
        shutil.rmtree(out)

    while len(moments) < count and time.monotonic() < until:
        moment = generator.uniform(0, whole)
        if _killed(_command(bundle, source, out), moment):
            own += 1
            moments.append(round(moment, 2))
            print("killed after", moments[-1], "s", flush=True)
        else:
            compare()
            own = 0
    if own:
        _run(_command(bundle, source, out))
        compare()
    return {
        "pictures": pictures,
        "jobs": JOBS,
        "formats": list(FORMATS),
        "kills": len(moments),
        "seconds_of_an_unbroken_run": round(whole, 1),
        "killed_after_s": moments,
        "sha256": unbroken,
        "data_sets": sets,
        "data_sets_after_kills": sum(one["kills"] > 0 for one in sets),
        "same": all(one["same"] for one in sets),
    }


def _command(bundle: Path, source: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "samforge.apps.cli", "label", str(bundle), str(source)]
    words += [word for one in CLASSES for word in ("--class", one)]
    words += [word for one in FORMATS for word in ("--format", one)]
    return [*words, "--out", str(out), "--jobs", str(JOBS)]


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _killed(words: list[str], after: float) -> bool:
    """Start a command and kill it, with all that it started; False where it had ended by itself.

    Raises:
        CalledProcessError: It had ended with an error.
    """
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return True
    if code:
        raise subprocess.CalledProcessError(code, words)
    return False
