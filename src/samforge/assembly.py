"""Bundle -> segmenter: picks the backend, opens the sessions, hands them to the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import ForeignBundle, SettingError
from samforge.core.session import Session, checked_threads
from samforge.media import read_image
from samforge.runtime import PhraseTokenizer, Segmenter

if TYPE_CHECKING:
    from samforge.runtime.device import DeviceSegmenter

SEGMENTER_PARTS = ("vision", "text", "detector", "detector_boxes")


def load(path: str | Path | Bundle, *, threads: int | None = None) -> Segmenter:
    """Open a bundle with the runtime it was built for.

    Args:
        path: The bundle's folder, or an opened bundle.
        threads: Processor threads of each session, or None for the runtime's own choice.

    Returns:
        A segmenter whose sessions are loaded.

    Raises:
        BundleError: It is no bundle, is damaged, or lacks a part that segmenting needs.
        MissingExtra: Its runtime is not installed.
        SettingError: ``threads`` is no number of threads.
    """
    checked_threads(threads)  # before gigabytes are hashed
    sessions, tokenizer, bundle = _opened(path, SEGMENTER_PARTS, threads)
    manifest = bundle.manifest
    return Segmenter(sessions, manifest.image, tokenizer, read_image, reference=manifest.reference)


def load_on_device(path: str | Path | Bundle) -> DeviceSegmenter:
    """Open a bundle so that everything between two copies stays on its GPU.

    Pictures go up as they are; resize, parts and scores run on the device, and only the masks of
    what was found come down. It takes phrases; boxes need :func:`load`.

    Args:
        path: The folder of a bundle for the target ``inductor``, or the opened bundle.

    Raises:
        SettingError: The bundle's runtime does not take tensors where they are.
        BundleError: It is no bundle, is damaged, lacks a part, or was built for another GPU.
        MissingExtra: torch is not installed.
    """
    sessions, tokenizer, bundle = _opened(path, SEGMENTER_PARTS[:3], None)
    if not all(hasattr(session, "run_tensors") for session in sessions.values()):
        raise SettingError(
            f"{bundle.root} was built for {bundle.manifest.target}, which takes arrays of the "
            "host. Build it with --target inductor to stay on a GPU, or use samforge.load."
        )
    from samforge.runtime.device import DeviceSegmenter

    on_device: Any = sessions
    manifest = bundle.manifest
    return DeviceSegmenter(
        on_device, manifest.image, tokenizer, read_image, reference=manifest.reference
    )


def _opened(
    path: str | Path | Bundle, parts: tuple[str, ...], threads: int | None
) -> tuple[dict[str, Session], PhraseTokenizer, Bundle]:
    """Sessions of those parts that a bundle has, and what reads its prompts."""
    bundle = path if isinstance(path, Bundle) else open_bundle(path)
    manifest = bundle.manifest
    missing = [name for name in SEGMENTER_PARTS[:3] if name not in manifest.parts]
    if missing or manifest.text is None:
        raise ForeignBundle(
            f"{bundle.root} holds {', '.join(manifest.parts)}; to segment it needs "
            f"{', '.join(missing) or 'a tokenizer'} as well. Build it without --part."
        )
    sessions = {
        name: session_from_bundle(bundle, name, threads=threads)
        for name in parts
        if name in manifest.parts
    }
    return sessions, tokenizer_from_bundle(bundle), bundle


def tokenizer_from_bundle(bundle: Bundle) -> PhraseTokenizer:
    """What turns a bundle's phrases into token ids.

    Raises:
        ForeignBundle: It takes no phrases.
        DamagedBundle: The tokenizer cannot be read.
    """
    manifest = bundle.manifest
    if manifest.text is None:
        raise ForeignBundle(f"{bundle.root} takes no phrases: it holds {manifest.family}.")
    return PhraseTokenizer(
        bundle.path(manifest.text.tokenizer),
        manifest.text.context,
        manifest.text.pad_id,
        reference=manifest.reference,
    )


def session_from_bundle(bundle: Bundle, name: str, *, threads: int | None = None) -> Session:
    """Load one part of a bundle.

    Raises:
        ForeignBundle: The bundle has no such part.
        MissingExtra: Its runtime is not installed.
    """
    checked_threads(threads)
    if name not in bundle.manifest.parts:
        raise ForeignBundle(
            f"{bundle.root} has no part '{name}'. It holds {', '.join(bundle.manifest.parts)}."
        )
    entry = bundle.manifest.parts[name]
    backend = backend_from_name(bundle.manifest.target)
    return backend.session_from_artifact(
        bundle.path(entry.artifact), entry.spec, threads=threads, options=entry.options
    )
