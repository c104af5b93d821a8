"""Picks the fastest way that sessions and this machine allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from samforge.core.devices import is_gpu
from samforge.core.errors import SettingError
from samforge.core.images import ImageSource, ImageSpec, RgbImage
from samforge.core.reference import META
from samforge.core.session import DeviceSession, Session
from samforge.core.targets import TORCH
from samforge.runtime.executor import Executor
from samforge.runtime.host import HostExecutor
from samforge.runtime.segmenter import Segmenter
from samforge.runtime.tokenize import PhraseTokenizer

NO_TORCH = "arrays go through the host: torch, which would keep them on the GPU, is not installed"


def segmenter_from_sessions(  # noqa: PLR0913  # each is a choice of its own
    sessions: Mapping[str, Session],
    image: ImageSpec,
    tokenizer: PhraseTokenizer,
    read_image: Callable[[ImageSource], RgbImage],
    *,
    prompt_batch: int | None = None,
    reference: str = META,
    digest: str = "",
) -> Segmenter:
    """Put a segmenter over sessions: what ``samforge.load`` gives, and what verification asks.

    Sessions on one GPU that take tensors where they are keep everything there between the picture
    and its masks. All others get arrays of the host.

    Args:
        sessions: By part: ``vision``, ``text``, ``detector`` and, for boxes, ``detector_boxes``.
        image: How the model wants its images.
        tokenizer: Of the same context length as the text part.
        read_image: Gives any source as uint8 (H, W, 3): ``samforge.media.read_image``.
        prompt_batch: Most phrases in one detector call; None keeps its masks within 512 MiB.
        reference: Whose masks: see ``postprocess.mask_limit``.
        digest: Of the bundle, where it is one.

    Raises:
        SettingError: A part is missing, or ``prompt_batch`` is below 1.
        ShapeError: The vision or the text part was built for other sizes.
    """
    if prompt_batch is not None and prompt_batch < 1:
        raise SettingError(f"prompt_batch is {prompt_batch}. Give at least 1, or None.")
    on_device = {name: one for name, one in sessions.items() if isinstance(one, DeviceSession)}
    stays = len(on_device) == len(sessions) and all(
        is_gpu(one.device) for one in on_device.values()
    )
    has_torch = find_spec(TORCH.module) is not None
    executor: Executor
    if stays and has_torch:
        from samforge.runtime.device import DeviceExecutor

        executor = DeviceExecutor(
            on_device,
            image,
            tokenizer,
            read_image,
            prompt_batch=prompt_batch,
            reference=reference,
        )
    else:
        executor = HostExecutor(
            sessions,
            image,
            tokenizer,
            read_image,
            prompt_batch=prompt_batch,
            reference=reference,
            note=NO_TORCH if stays else "",
        )
    return Segmenter(executor, image_size=image.size, parts=sessions, digest=digest)
