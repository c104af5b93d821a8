"""Files beside a bundle's own that no runtime reads: they are named, and do no harm."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_ANYWHERE = re.compile(
    # What systems leave in every folder: macOS, Windows, KDE, NFS and FUSE (files that are
    # deleted and still open), Synology, editors.
    r"\.DS_Store|\._.*|\.localized|__MACOSX|Thumbs\.db|ehthumbs\.db|desktop\.ini|\.directory"
    r"|\.nfs[0-9a-fA-F]+|\.fuse_hidden[0-9a-fA-F]+|@eaDir|\.Trash-\d+|\.Trashes|lost\+found"
    r"|\.Spotlight-V100|\.fseventsd|\.snapshot|\.snapshots|\.ipynb_checkpoints"
)
_FOLDERS = {".git", ".huggingface", ".dvc", ".svn", ".hg"}
_TOP = re.compile(
    r"\.git(attributes|ignore|keep|modules)|\.hfignore|\.dvcignore|\.keep"
    r"|(readme|licen[cs]e|notice|changelog|citation|authors|security|use_policy|model_?card)"
    r"([._-].*)?|[^.].*\.(md|rst|txt|cff|pdf)",
    re.IGNORECASE,
)


def is_harmless(relative: str) -> bool:
    """Whether a file that a manifest does not list may lie in a bundle.

    Of the parts' own folders only what systems leave everywhere: an artifact can name files beside
    it itself, as ONNX graphs do.
    """
    parts = PurePosixPath(relative).parts
    if any(_ANYWHERE.fullmatch(part) for part in parts):
        return True
    if parts[0] in _FOLDERS or parts[:2] == (".cache", "huggingface"):
        return True
    return len(parts) == 1 and _TOP.fullmatch(parts[0]) is not None
