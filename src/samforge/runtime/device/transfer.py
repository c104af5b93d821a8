"""Between host and device: pinned buffers that live on, so that copies run beside the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.images import RgbImage
from samforge.runtime.pending import Pending

_PIECES = 4  # the processor fills one piece of the pinned buffer while the last one is on its way
_MOST_STAGED = 32 << 20  # bytes of a picture: torch gives no pinned memory back to the system


@contextmanager
def on_default_stream(device: torch.device) -> Iterator[None]:
    """Queue everything on the default stream of a GPU, and be on it; a processor has none.

    What runs there lies at fixed addresses: calls must not overtake one another, whatever streams
    their callers are on. A caller's own stream is waited for, and waits.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        caller, own = torch.cuda.current_stream(), torch.cuda.default_stream()
        if caller == own:
            yield
            return
        own.wait_stream(caller)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            caller.wait_stream(own)


def staged(rgb: RgbImage, device: torch.device) -> RgbImage:
    """Copy a picture to pinned memory, from which it goes up without a further copy.

    For threads that decode: other threads run meanwhile. :class:`Uploader` would copy by torch's
    own threads, which wait busily for their next work, and take the processor from all decoders.
    The array may be dropped once it is on its way up: torch knows the memory by its address, and
    gives it to nobody else before the copy is done.

    Args:
        rgb: (H, W, 3), uint8.
        device: Where it will go; for a processor, and above 32 MiB, the picture stays as it is.
    """
    if device.type != "cuda" or rgb.nbytes > _MOST_STAGED:
        return rgb
    pinned: RgbImage = host_tensor(rgb.shape, torch.uint8, device).numpy()
    np.copyto(pinned, rgb)
    return pinned


class Uploader:
    """Brings 8-bit pictures to the device through one pinned buffer, which grows as needed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._stream = torch.cuda.Stream() if self._cuda else None  # type: ignore[no-untyped-call]
        self._sent = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self._read = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def __call__(self, rgb: npt.NDArray[np.uint8] | Tensor, *, own: bool = False) -> Tensor:
        """Move one picture; on a GPU the call returns before the copy is done.

        What lies in pinned memory, tensor or array, is read until :meth:`wait` returns, everything
        else on the host only during the call.

        The copy has a stream of its own: it runs beside kernels that were launched before, and
        those launched after wait for it.

        Args:
            rgb: (H, W, 3), uint8; a tensor that is on the device already stays as it is.
            own: Whether the picture needs memory of its own there, because the caller may fill
                this one again before it is used.
        """
        if isinstance(rgb, Tensor) and rgb.device == self.device:
            return rgb.clone() if own else rgb
        if isinstance(rgb, Tensor) and rgb.device.type == "cuda":
            return rgb.to(self.device)  # of another GPU
        if not self._cuda:
            shared = rgb if isinstance(rgb, Tensor) else torch.from_numpy(_writable(rgb))
            return shared.clone() if own else shared
        source = rgb if isinstance(rgb, Tensor) else only_read(rgb)
        assert self._stream is not None  # noqa: S101  # made with the GPU
        user = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            target = torch.empty(source.shape, dtype=torch.uint8, device=self.device)
            if source.is_pinned():
                target.copy_(source, non_blocking=True)
                assert self._read is not None  # noqa: S101  # made with the GPU
                self._read.record()
            else:
                self._through_pinned(source, target)
        user.wait_stream(self._stream)
        target.record_stream(user)
        return target

    def wait(self) -> None:
        """Wait until no memory of a caller's is read any more."""
        if self._read is not None:
            self._read.synchronize()

    def _through_pinned(self, source: Tensor, target: Tensor) -> None:
        assert self._sent is not None  # noqa: S101  # made with the GPU
        self._sent.synchronize()  # the buffer's last picture has to be gone
        count = source.numel()
        if self._pinned.numel() < count:
            self._pinned = torch.empty(count, dtype=torch.uint8, pin_memory=True)
        pinned = self._pinned[:count].view(source.shape)
        for piece, buffer, place in zip(
            source.chunk(_PIECES), pinned.chunk(_PIECES), target.chunk(_PIECES), strict=True
        ):
            buffer.copy_(piece)
            place.copy_(buffer, non_blocking=True)
        self._sent.record()


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory on the host that ``device`` copies to at full speed.

    torch keeps freed pinned blocks for the next call, so nothing is paid for fresh pages.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host, and wait for it."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = host_tensor(tuple(tensor.shape), tensor.dtype, tensor.device)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def begin_to_host(tensors: Sequence[Tensor]) -> Pending[list[Tensor]]:
    """Start copies to the host behind what was launched before; later work is not waited for.

    Args:
        tensors: Of one device, each in its own type.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return Pending.of([tensor.cpu() for tensor in tensors])
    there = []
    for tensor in tensors:
        host = host_tensor(tuple(tensor.shape), tensor.dtype, tensor.device)
        there.append(host.copy_(tensor, non_blocking=True))
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def finish() -> list[Tensor]:
        wait_for(done)
        return there

    return Pending(finish)


def wait_for(event: torch.cuda.Event) -> None:
    """Wait until an event has passed, whichever GPU the thread is on.

    To wait while another GPU is the current one makes a context there: half a gigabyte.
    """
    with torch.cuda.device(event.device):
        event.synchronize()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; it may change as soon as the call returns.

    A copy out of pageable memory would wait for all that was launched before, so it goes through
    pinned memory, which torch gives to nobody else before the copy is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    host = host_tensor(tuple(tensor.shape), tensor.dtype, device)
    return host.copy_(tensor).to(device, non_blocking=True)


def _writable(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()


def only_read(array: npt.NDArray[np.uint8]) -> Tensor:
    """An array's memory as a tensor that nobody may write to, or keep longer than the array.

    torch has no read-only tensors and warns of read-only arrays, as Pillow's are; numpy's copy of a
    4K picture takes longer than its upload.
    """
    array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return torch.frombuffer(memory, dtype=torch.uint8).view(array.shape)
