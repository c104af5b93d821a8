"""CUDA graphs of sessions: launched as one, without a gap between their kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
_WARM_UP = 2  # calls before capture: libraries make their handles and workspaces in them
_KEPT_GRAPHS = 16
_CAPTURING = Lock()  # torch captures one call at a time, whatever it belongs to


class Captured:
    """One call captured: the same memory goes in and comes out of every replay."""

    def __init__(
        self,
        call: Callable[[], dict[str, Tensor]],
        pool: Any,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Capture a call; other threads may use the GPU meanwhile.

        Args:
            call: Reads and writes the same memory each time.
            pool: Of torch's memory for graphs; None takes one of its own.
            stream: Where it is captured, one for all graphs of a pool; None takes a new one.
        """
        self.call = call  # it holds the inputs, whose memory every replay reads
        # torch's own stream for captures is one for all GPUs, on that of the first capture.
        side = torch.cuda.Stream() if stream is None else stream  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # By default whatever another thread waits for or allocates meanwhile would fail, and the
        # capture with it: a session that waits for its masks, a reader that decodes on the GPU.
        # Where a capture fails torch stays on its stream.
        with (
            _CAPTURING,
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self.graph, pool=pool, stream=side, capture_error_mode="thread_local"),
        ):
            self.outputs = call()

    def replay(self) -> dict[str, Tensor]:
        """Run it again on what its inputs hold now."""
        self.graph.replay()
        return self.outputs


class Graphs:
    """Captures each call once a key and replays it afterwards; on a processor it just calls."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled and device.type == "cuda"
        self._kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self.enabled else None
        self._stream = torch.cuda.Stream() if self.enabled else None  # type: ignore[no-untyped-call]

    def run(self, key: Hashable, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run a call whose inputs live at fixed addresses.

        Args:
            key: Names the call and every shape in it.
            call: Reads its inputs from the same tensors each time.
        """
        if not self.enabled:
            return call()
        if key not in self._kept:
            self._kept[key] = Captured(call, self._pool, self._stream)
            while len(self._kept) > _KEPT_GRAPHS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].replay()

    def clear(self) -> None:
        """Free every graph and its memory."""
        self._kept.clear()
