"""Memory of a bundle: as a program of its own, loads one, runs it once and says what it took.

A process that has run other bundles before cannot tell: freed memory stays with it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

_SECONDS = 900
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """Most memory that a process needed to load a bundle and run it."""

    resident_bytes: int
    """Peak of the resident memory of the whole process, Python and the runtime included."""
    gpu_bytes: int | None
    """Memory of the GPUs in use at the end, or None where nvidia-smi is not there."""


def weigh(
    bundle: Path,
    *,
    batch: int,
    prompts: int,
    device: str = "auto",
    threads: int | None = None,
    digest: str | None = None,
) -> Weight | str:
    """Load and run a bundle in a process of its own.

    Args:
        bundle: Its folder.
        batch: Images in a call.
        prompts: Phrases asked of each.
        device: Where to run, as ``samforge.load`` takes it.
        threads: Processor threads of each session.
        digest: What was opened there: another one is not weighed.

    Returns:
        What it took, or why it cannot be said.
    """
    words = [str(bundle), digest or "", str(batch), str(prompts), device, str(threads or 0)]
    try:
        run = subprocess.run(
            [sys.executable, "-m", "samforge.workflows.memory", *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        return str(last[0])
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    # Runtimes print to standard output, too; the answer is the last line.
    return Weight(**json.loads(run.stdout.strip().splitlines()[-1]))


def gpu_bytes_from_csv(text: str, process: int) -> int | None:
    """Read nvidia-smi's lines of process and MiB; None when the process is not among them."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    own = [int(mib) for number, mib in rows if int(number) == process]
    return sum(own) * _MIB if own else None


def _main(words: list[str]) -> int:
    from samforge.core.bundle import open_bundle
    from samforge.core.timing import Timings
    from samforge.workflows.bench_subjects import Case, subjects_from_bundle

    bundle, digest, batch, prompts, device, threads = words
    # The caller has just verified it.
    opened = open_bundle(bundle, verify=False, digest=digest or None)
    case = Case(batch=int(batch), prompts=int(prompts))
    subjects = subjects_from_bundle(
        opened, [case], None, device=device, threads=int(threads) or None
    )
    for run in subjects.values():
        run(Timings())
    weight = Weight(resident_bytes=_peak_bytes(), gpu_bytes=_gpu_bytes())
    sys.stdout.write(json.dumps(asdict(weight)) + "\n")
    return 0


def _peak_bytes() -> int:
    # Linux's getrusage keeps the peak of the process that started this one: exec does not reset it.
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes on macOS


def _gpu_bytes() -> int | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run([tool, *query], capture_output=True, text=True, check=True, timeout=30)
        return gpu_bytes_from_csv(run.stdout, os.getpid())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # the GPU's memory is then not shown; everything else is


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
