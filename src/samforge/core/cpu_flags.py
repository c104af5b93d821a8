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


def products_saturate(cpuinfo: Path = CPU_INFO) -> bool:
    """Whether the processor adds pairs of 8-bit products in 16 bits, which may not hold them.

    x86 before VNNI does (``vpmaddubsw``); what is no x86, or cannot be read, is taken not to.
    """
    flags = cpu_flags(cpuinfo)
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & flags


SATURATING = "without VNNI instructions its 8-bit products may saturate"
"""What a session says of such a processor, where its layers multiply integers."""
