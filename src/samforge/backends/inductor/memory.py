"""Out of memory on a GPU: what was asked for, what was free, and what would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samforge.core.errors import OutOfMemory

if TYPE_CHECKING:
    import torch


class memory_errors:  # noqa: N801  # reads as a statement, like contextlib's
    """Turns a GPU's out-of-memory errors into :class:`OutOfMemory` with the batch that would fit.

    AOTInductor's C++ door gives a bare RuntimeError, so the allocator's own count decides.
    """

    def __init__(self, part: str, device: torch.device, batch: int) -> None:
        self.part, self.device, self.batch = part, device, batch

    def _allocator(self) -> tuple[int, int, int]:
        import torch

        stats = torch.cuda.memory_stats(self.device)
        return (
            int(stats.get("num_ooms", 0)),
            int(stats.get("allocated_bytes.all.current", 0)),
            int(stats.get("allocated_bytes.all.peak", 0)),
        )

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            self._before = self._allocator()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.device.type != "cuda" or error is None:
            return
        import torch

        failures, current, peak = self._allocator()
        if failures == self._before[0]:
            return
        free = torch.cuda.mem_get_info(self.device)[0]
        free += torch.cuda.memory_reserved(self.device) - current
        used = max(peak - self._before[1], 1)
        raise OutOfMemory(
            out_of_memory_message(
                self.part, torch.cuda.get_device_name(self.device), self.batch, free, used
            )
        ) from error


def out_of_memory_message(part: str, gpu: str, batch: int, free: int, used: int) -> str:
    """Say what did not fit and what would.

    Args:
        part: Name of the part.
        gpu: Name of the GPU.
        batch: Images, or phrases, of the call that failed.
        free: Bytes that were free for it.
        used: Bytes it had taken when it failed: what it needs is more.
    """
    # What was used so far is a lower bound of the need, so the share of it that would have fitted
    # is taken with a quarter to spare.
    fitting = int(batch * 0.75 * min(1.0, free / max(free, used)))
    fitting = min(fitting, batch - 1)
    advice = (
        f"A batch of {fitting} would fit." if fitting >= 1 else "Free memory of other programs."
    )
    return (
        f"{part} ran out of memory on {gpu} with a batch of {batch}: {free / 2**30:.1f} GiB were "
        f"free. {advice}"
    )
