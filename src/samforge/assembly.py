"""Bundle -> segmenter: picks the backend, opens the sessions, hands them to the runtime."""

from __future__ import annotations

from pathlib import Path

from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import ForeignBundle
from samforge.core.session import Session
from samforge.media import read_image
from samforge.runtime import PhraseTokenizer, Segmenter

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
    """
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
        for name in SEGMENTER_PARTS
        if name in manifest.parts
    }
    tokenizer = PhraseTokenizer(
        bundle.path(manifest.text.tokenizer), manifest.text.context, manifest.text.pad_id
    )
    return Segmenter(sessions, manifest.image, tokenizer, read_image)


def session_from_bundle(bundle: Bundle, name: str, *, threads: int | None = None) -> Session:
    """Load one part of a bundle.

    Raises:
        ForeignBundle: The bundle has no such part.
        MissingExtra: Its runtime is not installed.
    """
    if name not in bundle.manifest.parts:
        raise ForeignBundle(
            f"{bundle.root} has no part '{name}'. It holds {', '.join(bundle.manifest.parts)}."
        )
    entry = bundle.manifest.parts[name]
    backend = backend_from_name(bundle.manifest.target)
    return backend.session_from_artifact(
        bundle.path(entry.artifact), entry.spec, threads=threads, options=entry.options
    )
