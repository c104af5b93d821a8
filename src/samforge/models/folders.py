"""Model folders: settings in JSON, weights in safetensors, and snapshots of Hugging Face ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samforge.core.errors import CheckpointError, GatedModel, UnknownModel
from samforge.core.version import __version__

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


def table_from_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one table.

    Raises:
        CheckpointError: It is none.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON ({error}). Download it again.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} is no table of settings. Download it again.")
    return table


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder: the shards that its index names, or all there are.

    Raises:
        CheckpointError: Files are missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = table_from_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} names no shards. Download it again.")
        # The bare name: a shard cannot lie outside the folder.
        files = tuple(folder / Path(str(name)).name for name in sorted(set(shards.values())))
    else:
        files = tuple(sorted(folder.glob("*.safetensors")))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder} is incomplete: {', '.join(missing) or 'it holds no .safetensors file'}. "
            "Download the checkpoint again."
        )
    return files


def folder_from_hub(name: str, patterns: Sequence[str], *, allowed: str) -> Path:
    """Folder of a Hugging Face snapshot, downloaded when it is not in the cache.

    Args:
        name: An id such as ``facebook/dinov3-vits16-pretrain-lvd1689m``.
        patterns: Files to fetch.
        allowed: What names may be, for the messages.

    Raises:
        UnknownModel: No such file, folder or id.
        GatedModel: The id exists, but access was not granted.
        CheckpointError: It cannot be downloaded.
    """
    if not HUB_ID.match(name):
        raise UnknownModel(f"There is no model '{name}', and no such file or folder. {allowed}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(patterns),
                library_name="samforge",
                library_version=__version__,
            )
        )
    except GatedRepoError as error:
        raise GatedModel(
            f"{name} is gated. Accept its licence at https://huggingface.co/{name}, log in with "
            "'hf auth login', and try again. A folder you already have works as well: "
            "samforge build /path/to/folder."
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UnknownModel(
            f"There is no file or folder '{name}', and Hugging Face has no such model. {allowed}"
        ) from error
    except Exception as error:  # from the network and the cache, of several packages
        raise CheckpointError(
            f"{name} is not in the local cache and cannot be downloaded ({error}). "
            "Check the network, or give a folder: samforge build /path/to/folder."
        ) from error
