"""Names of what a part runs on: ``cpu``, ``cuda:0``."""

from __future__ import annotations

import re

from samforge.core.errors import SettingError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
_GPU = re.compile(r"cuda(:(\d{1,3}))?")


def checked_device(device: str) -> str | None:
    """Read what a caller asks for.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` (the first GPU), or ``cuda:1``.

    Returns:
        ``cpu`` or ``cuda:N``; None for ``auto``.

    Raises:
        SettingError: It is none of these.
    """
    if device == AUTO:
        return None
    if device == CPU:
        return CPU
    if isinstance(device, str) and (found := _GPU.fullmatch(device)):
        return f"{CUDA}:{int(found[2] or 0)}"
    raise SettingError(
        f"device is {device!r:.40}. Give auto, cpu, cuda (the first GPU), or a GPU by number, such "
        "as cuda:1."
    )


def gpu_index(device: str | None) -> int:
    """Number of the GPU that a checked name means; None means the first."""
    return int(device.partition(":")[2]) if device is not None and device != CPU else 0


def is_gpu(device: str | None) -> bool:
    """Whether a checked name is a GPU's."""
    return device is not None and device.startswith(CUDA)


def require_kind(name: str, device: str | None, kinds: tuple[str, ...]) -> None:
    """Make sure that a runtime can run where it is asked to.

    Args:
        name: Of the runtime.
        device: A checked name, or None for the runtime's own choice.
        kinds: Of ``cpu`` and ``cuda``, those it runs on.

    Raises:
        SettingError: It cannot.
    """
    if device is None or device.partition(":")[0] in kinds:
        return
    where = {CPU: "the processor", CUDA: "an NVIDIA GPU"}[kinds[0]]
    raise SettingError(
        f"{name} runs on {where}, and device is {device}. Leave device out, or build the bundle "
        "for a target that runs there (samforge build --target)."
    )
