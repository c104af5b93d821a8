"""What the processor can do, by its flags in /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux tells."""


def cpu_flags(cpuinfo: Path = CPU_INFO) -> frozenset[str]:
    """Words that Linux says of the processor, such as ``avx2``; none where it cannot be read."""
    try:
        return frozenset(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return frozenset()
