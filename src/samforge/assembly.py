"""Bundle -> segmenter: picks the backend, opens the sessions, hands them to the runtime."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from samforge.backends import backend_from_name
from samforge.core.bundle import Bundle, open_bundle, require_digest
from samforge.core.capabilities import CAPABILITIES, TEXT
from samforge.core.devices import AUTO, checked_device
from samforge.core.errors import BundleError, DamagedBundle, ForeignBundle
from samforge.core.facts import check_facts
from samforge.core.files import sha256_of
from samforge.core.manifest import what_to_do
from samforge.core.session import Session, checked_threads
from samforge.media import read_image
from samforge.runtime import PhraseTokenizer, Segmenter, segmenter_from_sessions

_MOST_TRIES = 100
"""Loads that a replacement may disturb before it is told."""
T = TypeVar("T")


def load(
    path: str | Path | Bundle,
    *,
    device: str = AUTO,
    threads: int | None = None,
    digest: str | None = None,
) -> Segmenter:
    """Open a bundle with the runtime it was built for, by the fastest way this machine allows.

    On a GPU everything between a picture and its masks stays there, for every runtime that takes
    tensors where they are. :attr:`Segmenter.processor` says which way was taken.

    What is loaded is what was hashed: a file that changes meanwhile is refused, and of a folder
    that a build replaces meanwhile, all is of the old bundle or all of the new one.

    Args:
        path: The bundle's folder, or an opened bundle.
        device: ``auto`` (what the bundle was built for), ``cpu``, ``cuda`` (the first GPU), or a
            GPU by number: ``cuda:1``.
        threads: Processor threads of each session, or None for the runtime's own choice.
        digest: The bundle's digest, as ``samforge build`` and ``inspect`` print it: any other
            bundle is refused.

    Returns:
        A segmenter whose sessions are loaded.

    Raises:
        BundleError: It is no bundle, is damaged, lacks a part that segmenting needs, or was built
            for a GPU that is not here.
        MissingExtra: Its runtime is not installed.
        SettingError: ``threads`` is no number of threads, or the bundle does not run on ``device``.
    """
    checked_threads(threads)  # before gigabytes are hashed
    sessions, tokenizer, bundle = _opened(path, checked_device(device), threads, digest)
    manifest = bundle.manifest
    return segmenter_from_sessions(
        sessions,
        manifest.image,
        tokenizer,
        read_image,
        reference=manifest.reference,
        digest=bundle.digest,
    )


def _opened(
    path: str | Path | Bundle, device: str | None, threads: int | None, digest: str | None
) -> tuple[dict[str, Session], PhraseTokenizer, Bundle]:
    """Sessions of a segmenter's parts that a bundle has, and what reads its prompts."""
    if isinstance(path, Bundle):
        require_digest(path, digest)
        return _loaded(path, device, threads)
    for _ in range(_MOST_TRIES):
        bundle = open_bundle(path, digest=digest)
        try:
            return _loaded(bundle, device, threads)
        except BundleError:
            if bundle.is_current():
                raise
            # Another was published there meanwhile: all of it is the new one's then.
    raise DamagedBundle(f"{path} is replaced again and again. Load it when builds are done.")


def _loaded(
    bundle: Bundle, device: str | None, threads: int | None
) -> tuple[dict[str, Session], PhraseTokenizer, Bundle]:
    manifest = bundle.manifest
    missing = TEXT.missing(manifest.parts)
    if missing or manifest.text is None:
        raise ForeignBundle(
            f"{bundle.root} holds {', '.join(manifest.parts)}; to segment it needs "
            f"{', '.join(missing) or 'a tokenizer'} as well. Build it without --part."
        )
    sessions: dict[str, Session] = {}
    try:
        for name in dict.fromkeys(part for one in CAPABILITIES for part in one.parts):
            if name in manifest.parts:
                sessions[name] = session_from_bundle(bundle, name, device=device, threads=threads)
        return sessions, tokenizer_from_bundle(bundle), bundle
    except BaseException:
        for session in sessions.values():
            session.close()
        raise


def session_from_bundle(
    bundle: Bundle, name: str, *, device: str | None = None, threads: int | None = None
) -> Session:
    """Load one part of a bundle.

    Args:
        bundle: Which one.
        name: Of the part.
        device: ``cpu`` or ``cuda:N``, or None for what it was built for.
        threads: Processor threads, or None for the runtime's own choice.

    Raises:
        ForeignBundle: The bundle has no such part.
        DamagedBundle: A file changed since the bundle was opened, or says of itself that it is
            another part, for another target, or in another precision than the manifest says.
        MissingExtra: Its runtime is not installed.
        SettingError: It does not run on ``device``.
    """
    checked_threads(threads)
    if name not in bundle.manifest.parts:
        raise ForeignBundle(
            f"{bundle.root} has no part '{name}'. It holds {', '.join(bundle.manifest.parts)}."
        )
    entry = bundle.manifest.parts[name]
    backend = backend_from_name(bundle.manifest.target)
    files = (entry.artifact, *entry.side_files)

    bundle.confirm(files)
    stamped = bundle.path(entry.artifact)
    check_facts(stamped, backend.facts_from_artifact(stamped), bundle.manifest, name)
    with real_files(bundle, files) as artifact:
        return _unchanged_by(
            bundle,
            files,
            lambda: backend.session_from_artifact(
                artifact, entry.spec, threads=threads, device=device, options=entry.options
            ),
            lambda session: session.close(),
        )


def tokenizer_from_bundle(bundle: Bundle) -> PhraseTokenizer:
    """Open what turns phrases into token ids.

    Raises:
        ForeignBundle: The bundle takes no phrases.
        DamagedBundle: Its file changed since the bundle was opened, or is no tokenizer.
    """
    manifest, text = bundle.manifest, bundle.manifest.text
    if text is None:
        raise ForeignBundle(f"{bundle.root} takes no phrases: it holds {manifest.family}.")
    files = (text.tokenizer,)
    return _unchanged_by(
        bundle,
        files,
        lambda: PhraseTokenizer(
            bundle.path(text.tokenizer), text.context, text.pad_id, reference=manifest.reference
        ),
        lambda _: None,
    )


def _unchanged_by(
    bundle: Bundle, files: tuple[str, ...], make: Callable[[], T], discard: Callable[[T], None]
) -> T:
    """Load files that are the hashed ones before and after; nothing is hashed twice for it."""
    for _ in range(_MOST_TRIES):
        bundle.confirm(files)
        made = make()
        if bundle.unchanged(files):
            return made
        discard(made)
    raise DamagedBundle(
        f"{bundle.root}: {', '.join(files)} changed while it was loaded, again and again. "
        "Load it when nothing writes there."
    )


@contextmanager
def real_files(bundle: Bundle, files: tuple[str, ...]) -> Iterator[Path]:
    """Path of an artifact whose side files lie beside it as files, not as links.

    OpenVINO 2026 and ONNX Runtime read no external weights through a link that leaves the
    artifact's folder, as all files in a cache of the Hugging Face Hub do.
    """
    paths = [bundle.path(relative) for relative in files]
    if len(files) < 2 or not any(path.is_symlink() for path in paths):
        yield paths[0]
        return
    targets = [path.resolve() for path in paths]
    with ExitStack() as stack:
        folder: Path | None = None
        for place in (targets[0].parent, None):  # links of one disk cost nothing
            try:
                folder = Path(
                    stack.enter_context(TemporaryDirectory(prefix=".samforge-", dir=place))
                )
                break
            except OSError:
                continue
        if folder is None:
            raise BundleError(
                f"{bundle.root} has weights behind links, and there is no place to put them side "
                "by side: no temporary folder can be made. Set TMPDIR to one."
            )
        for relative, path, target in zip(files, paths, targets, strict=True):
            try:
                os.link(target, folder / path.name)
            except OSError:
                _copy(bundle, relative, target, folder / path.name)
        yield folder / paths[0].name


def _copy(bundle: Bundle, relative: str, source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    if sha256_of(target) != bundle.manifest.files[relative].sha256:
        raise DamagedBundle(
            f"{relative} in {bundle.root} changed while it was loaded. {what_to_do()}"
        )
