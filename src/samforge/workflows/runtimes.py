"""Which runtimes and packages are installed and usable, and what installs the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from samforge.core.targets import TARGETS, Target

_PROBE = Path(__file__).with_name("probe.py")
_PROBE_SECONDS = 120


def _runtimes() -> dict[str, Target]:
    """Targets by the name of their row: the module's, or the target's where two packages share one.

    Targets of one module and one extra (torch's) are one row.
    """
    rows: dict[str, Target] = {}
    for target in TARGETS.values():
        first = rows.setdefault(target.module, target)
        if first.extra != target.extra:
            rows[target.name] = target
    return rows


# Distribution and its extra: what steps need besides a runtime.
_PACKAGES = (
    ("transformers", "build"),
    ("torchao", "build"),
    ("onnx", "build"),
    ("onnxscript", "build"),
    ("safetensors", "build"),
    ("huggingface_hub", "build"),
    ("av", "video"),
    ("pillow_heif", "heic"),
    ("supervision", "supervision"),
    ("rasterio", "geo"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeReport:
    """One runtime as it was found here."""

    name: str
    """Import name, or the target's where several packages bring one module."""
    version: str | None
    """Version, or None when it is not installed or does not load."""
    usable: bool
    """Whether it loads and finds what it needs."""
    processors: tuple[str, ...]
    """What it can run on, in its own words."""
    problem: str | None
    """Why it is not usable."""
    install: str | None
    """The command that installs it, when it is not usable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageReport:
    """One optional package."""

    name: str
    """Name of the distribution."""
    version: str | None
    """Installed version, or None."""
    install: str | None
    """The command that installs it, when it is missing."""


def runtimes_here() -> tuple[RuntimeReport, ...]:
    """Load every installed runtime in a process of its own and ask what it can use."""
    return tuple(_runtime(name, target) for name, target in _runtimes().items())


def packages_here() -> tuple[PackageReport, ...]:
    """Look up the versions of the optional packages, without importing them."""
    return tuple(_package(name, extra) for name, extra in _PACKAGES)


def _runtime(name: str, target: Target) -> RuntimeReport:
    found, problem = (None, "not installed")
    if importlib.util.find_spec(target.module) is not None and (
        name == target.module or any(map(_version, target.distributions))
    ):
        found, problem = _probe(target.name)
    return RuntimeReport(
        name=name,
        version=found["version"] if found else None,
        usable=found is not None,
        processors=tuple(found["processors"]) if found else (),
        problem=None if found else problem,
        install=None if found else _install(target.extra),
    )


def _probe(name: str) -> tuple[dict[str, str], str] | tuple[None, str]:
    try:
        # -P keeps the folder of the probe out of the search path: it has an inspect.py.
        run = subprocess.run(
            [sys.executable, "-P", str(_PROBE), name],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None, f"did not load within {_PROBE_SECONDS} seconds"
    if run.returncode != 0:
        last = run.stderr.strip().splitlines()[-1:] or [f"its process ended with {run.returncode}"]
        return None, f"installed, but does not load: {last[0]}"
    # Runtimes print to standard output, too; the answer is the last line.
    return json.loads(run.stdout.strip().splitlines()[-1]), ""


def _package(name: str, extra: str) -> PackageReport:
    version = _version(name)
    return PackageReport(name=name, version=version, install=None if version else _install(extra))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extra: str | None) -> str:
    return "pip install samforge" if extra is None else f"pip install 'samforge[{extra}]'"
