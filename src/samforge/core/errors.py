"""Every error and warning samforge raises, in one tree.

A message says what came, what is allowed and what to do. The command line turns ``exit_code`` into
the process's exit status, so scripts can tell bad input from a failed gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SamforgeError(Exception):
    """Base of everything samforge raises on purpose."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, vars(self))


def _again(
    kind: type[SamforgeError], args: tuple[object, ...], own: Mapping[str, object]
) -> SamforgeError:
    """An error as it was pickled.

    Exceptions are pickled as a call with their message alone, which is not what an ``__init__``
    of their own takes. So that one is left out.
    """
    error = kind.__new__(kind, *args)
    super(SamforgeError, error).__init__(*args)
    vars(error).update(own)
    return error


class InputError(SamforgeError, ValueError):
    """Something the caller passed is not usable."""

    exit_code = 2


class PathError(InputError):
    """A path is too long, leads in a circle, or holds what no path can hold."""


class ImageError(InputError):
    """A file or array is not an image that can be read whole."""


class VideoError(InputError):
    """A file is not a video that can be read, holds no frames, or ends before it should."""


class PromptError(InputError):
    """A phrase, a box or its label is not usable."""


class SettingError(InputError):
    """A threshold, a size, a name or another setting is outside what is allowed."""


class ShapeError(InputError):
    """A tensor has another name, type or shape than the part wants."""


class MeshError(InputError):
    """A mesh or its region map cannot be read, is not finite, or does not fit another."""


class MissingExtra(SamforgeError, ImportError):
    """An optional dependency is needed and not installed."""

    exit_code = 3

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Run: pip install 'samforge[{extra}]'.")
        self.extra = extra


class CheckpointError(SamforgeError):
    """A checkpoint cannot be found, read or matched to its architecture."""

    exit_code = 4


class UnknownModel(CheckpointError):
    """The name is no built-in model, no local path and no Hugging Face id."""


class GatedModel(CheckpointError):
    """The weights exist but need a licence to be accepted first."""


class CheckpointKeysError(CheckpointError):
    """Tensors are missing, unexpected or of another shape."""


class BundleError(SamforgeError):
    """A bundle cannot be opened."""

    exit_code = 5


class DamagedBundle(BundleError):
    """A file is missing, changed, or points outside the bundle."""


class ForeignBundle(BundleError):
    """The folder is not a samforge bundle, or one of another schema or runtime."""


class BuildError(SamforgeError):
    """A build step failed; nothing was published."""

    exit_code = 6


class ExportError(BuildError):
    """A part could not be exported or converted."""


class EngineError(BuildError):
    """An engine could not be built, or does not compute in the formats that were planned."""


class OutputError(BuildError):
    """The output folder cannot be written: permissions, disk space, or something is there."""


class FidelityError(BuildError):
    """A gate did not hold: what was built differs too much from what it was built from."""

    exit_code = 7


class Interrupted(SamforgeError):
    """The user stopped a command, which says what it kept."""

    exit_code = 130


class ForkedSession(SamforgeError):
    """A session was loaded before this process was forked from the one that loaded it."""


class ItemError(SamforgeError):
    """Something unforeseen went wrong with one of several items; the others were done."""


class OutOfMemory(SamforgeError):
    """A GPU, or the host, has no room for what was asked of it."""

    exit_code = 8


class ServiceError(SamforgeError):
    """A server does not answer: not now, or not in time."""


class Overloaded(ServiceError):
    """More is asked than can be done in time, or the server ends: ask again later."""

    def __init__(self, message: str, *, retry_after_s: float, of_client: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.of_client = of_client
        """Whether this client alone asks too much."""


class DeadlineExceeded(ServiceError):
    """The time that a request was given has passed."""


class NotHere(InputError):
    """What a client names is not at this server, or no longer."""


class TooLarge(InputError):
    """A request is larger than the server's limits allow."""


class SamforgeWarning(UserWarning):
    """Base of samforge's warnings."""


class PromptWarning(SamforgeWarning):
    """A phrase was truncated or holds words the model does not know."""
