"""What an engine was built for, in a small file beside it: checked before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samforge.backends.tensorrt.settings import AxisRange
from samforge.core.computation import Computation
from samforge.core.errors import DamagedBundle
from samforge.core.files import atomic_write_json
from samforge.core.strict_json import strict_json
from samforge.core.structure import StructureError, value_from_json

STAMP_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStamp:
    """Everything that decides whether an engine runs here."""

    stamp: int = STAMP_VERSION
    """Structure of this file."""
    target: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    version: str
    """Full version of the library that built it; it runs on no other."""
    compute_capabilities: tuple[str, ...]
    """GPU generations it runs on."""
    gpu: str | None
    """Model of the GPU it was built on, where that decides; None where the generation does."""
    sha256: str
    """Hash of the engine file."""
    bytes: int
    """Its size."""
    precision: str
    """Number format of the graph it was built from."""
    form: str
    """Form of attention it was built in."""
    axes: dict[str, AxisRange] = field(default_factory=dict)
    """Sizes of each dynamic axis it takes."""
    computation: Computation | None = None
    """What it computes in which format, where that could be read."""
    facts: str | None = None
    """What the engine is in a bundle; see :mod:`samforge.core.facts`."""


def stamp_path(engine: Path) -> Path:
    """Where an engine's stamp lies."""
    return engine.with_name(engine.name + ".json")


def write_stamp(engine: Path, stamp: EngineStamp) -> Path:
    """Write the stamp beside an engine.

    Raises:
        OutputError: It cannot be written.
    """
    path = stamp_path(engine)
    atomic_write_json(path, stamp)
    return path


def read_stamp(engine: Path) -> EngineStamp | None:
    """Read the stamp of an engine; None where there is none, as beside an engine of trtexec.

    Raises:
        DamagedBundle: It is no stamp.
    """
    path = stamp_path(engine)
    if not path.is_file():
        return None
    try:
        table = strict_json(path.read_text(encoding="utf-8"))
        return value_from_json(EngineStamp, table)
    except (ValueError, OSError, StructureError) as error:
        raise DamagedBundle(
            f"{path} is not the stamp of an engine: {error} Build the engine again."
        ) from error
