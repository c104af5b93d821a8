"""Find a SAM 3 checkpoint by name: built in, a folder, a file, or a Hugging Face id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.errors import CheckpointError, UnknownModel
from samforge.core.native import native_errors
from samforge.core.reference import META
from samforge.models import tiny
from samforge.models.config_values import check_heads, check_values
from samforge.models.folders import folder_from_hub, table_from_json, weight_files
from samforge.models.sam3.checkpoint import Sam3Checkpoint, state_shapes, with_image_size
from samforge.models.sam3.configuration import config_for_reference
from samforge.models.sam3.meta_names import DETECTOR, MetaSource, is_sam3_1
from samforge.models.sam3.tracker.configuration import tracker_config
from samforge.models.sam3.tracker.modules import tracker_shapes
from samforge.models.sources import RandomSource, SafetensorsSource, TorchFileSource, WeightSource

HUB_FILES = ("*.json", "*.safetensors", "LICENSE*")
"""Files of a Hugging Face repository that are downloaded."""
PUBLISHED = ("facebook/sam3",)
"""Hugging Face ids whose architecture is transformers' default configuration."""
SAM_NOTICE = (
    "The weights in this bundle are SAM Materials by Meta, used under the SAM License:\n"
    "https://github.com/facebookresearch/sam3/blob/main/LICENSE\n"
    "Whoever passes the bundle on passes on that licence and its terms.\n"
)
RANDOM_NOTICE = "The weights in this bundle are random numbers: nobody's work, without meaning.\n"
HELP = (
    "Give 'tiny', a folder with config.json and safetensors files, Meta's sam3.pt, "
    "or a Hugging Face id such as facebook/sam3."
)
SAM3_1 = (
    "{}: this is SAM 3.1, whose neck and tracker are others than SAM 3's. samforge builds SAM 3: "
    "give its sam3.pt, or facebook/sam3."
)
TOKENIZER_HELP = (
    "Put the tokenizer.json of facebook/sam3 there (that of openai/clip-vit-base-patch32 is the "
    "same), or name it with --tokenizer."
)
PROBES = ("red circle", "a" * 40 + "b", "été 東京")
"""Phrases that a tokenizer has to survive before a build begins."""


def checkpoint_from_name(  # noqa: PLR0913  # each a choice of its own, and all but one optional
    name: str,
    *,
    reference: str = META,
    image_size: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    tokenizer: Path | None = None,
    tracker: bool = False,
) -> Sam3Checkpoint:
    """Find a checkpoint, check every name in it, and set the image size.

    Args:
        name: ``tiny``, a local folder, a ``.pt`` file of Meta's, or a Hugging Face id.
        reference: Whose computation the parts are: ``meta`` or ``transformers``.
        image_size: Side in pixels, a multiple of 14; None keeps the model's own.
        random_weights: Use the architecture with random weights; nothing is downloaded.
        seed: Of the random weights.
        tokenizer: A ``tokenizers`` JSON, where the checkpoint has none (Meta's file).
        tracker: Read the video tracker's weights too, and check their names. Without it they are
            left alone, and no part of the tracker can be made.

    Raises:
        UnknownModel: No such model.
        GatedModel: The id exists, but access was not granted.
        CheckpointError: Files are missing or damaged.
        CheckpointKeysError: Tensors are missing or unexpected.
        SettingError: The image size does not fit the patches, or the configuration contradicts the
            reference.
    """
    path = Path(name)
    tracker_settings: dict[str, Any] | None = {}
    if name == tiny.NAME:
        config = Sam3Config(**json.loads(tiny.CONFIG_PATH.read_text()))
        files: tuple[Path, ...] = (tiny.WEIGHTS_PATH,)
        files += (tiny.TRACKER_WEIGHTS_PATH,) if tracker else ()
        tokenizer, license_text = tokenizer or tiny.TOKENIZER_PATH, tiny.LICENSE_NOTICE
        tracker_settings = json.loads(tiny.TRACKER_CONFIG_PATH.read_text())
    elif random_weights and name in PUBLISHED:
        config, files, license_text = Sam3Config(), (), ""
    elif path.is_file():
        config, files, license_text = Sam3Config(), (path,), SAM_NOTICE
        tokenizer = tokenizer or _tokenizer_beside(path)
    else:
        folder = path if path.is_dir() else folder_from_hub(name, HUB_FILES, allowed=HELP)
        config, tracker_settings = _configs_from_folder(folder)
        files = () if random_weights else weight_files(folder)
        tokenizer, license_text = tokenizer or _tokenizer_in(folder), _license_in(folder)
        if tokenizer is None and not random_weights:
            raise CheckpointError(f"{folder} has no tokenizer.json. {TOKENIZER_HELP}")
    config = with_image_size(config_for_reference(config, reference, name), image_size)
    tracking = _tracker(tracker_settings, config, reference, name) if tracker else None
    if random_weights:
        shapes = state_shapes(config)
        if tracking is not None:
            shapes |= tracker_shapes(tracking, config)
        source: WeightSource = RandomSource(shapes, seed, config.initializer_range)
        license_text = RANDOM_NOTICE
    else:
        source = _source(files, tracker=tracker)
    checkpoint = Sam3Checkpoint(
        name=name,
        reference=reference,
        config=config,
        source=source,
        tokenizer=tokenizer,
        eos_id=(
            _eos_id(tokenizer, config.text_config.vocab_size)
            if tokenizer
            else config.text_config.eos_token_id
        ),
        license_text=license_text,
        tracker=tracking,
    )
    checkpoint.check()
    return checkpoint


def _tracker(
    settings: dict[str, Any] | None, detector: Sam3Config, reference: str, name: str
) -> Sam3TrackerVideoConfig:
    if settings is None:
        raise CheckpointError(
            f"{name} has no tracker: it is the detector alone. Meta's sam3.pt and facebook/sam3 "
            "(model type sam3_video) hold both."
        )
    check_values(settings, name)
    with native_errors(lambda error: _no_config(Path(name), error)):
        return tracker_config(settings, detector, reference, name)


def _source(files: tuple[Path, ...], *, tracker: bool = False) -> WeightSource:
    if files[0].suffix == ".safetensors":
        stored = SafetensorsSource(files)
        if is_sam3_1(stored.names()):
            raise UnknownModel(SAM3_1.format(files[0].parent))
        return stored
    source = TorchFileSource(files[0])
    if is_sam3_1(source.names()):
        raise UnknownModel(SAM3_1.format(files[0]))
    if any(name.startswith(DETECTOR) for name in source.names()):
        return MetaSource(source, tracker=tracker)
    return source


def _configs_from_folder(folder: Path) -> tuple[Sam3Config, dict[str, Any] | None]:
    """The detector's configuration, and the settings of a tracker that comes with it."""
    file = folder / "config.json"
    if not file.is_file():
        raise UnknownModel(f"{folder} has no config.json, so it is no model folder. {HELP}")
    settings: Any = table_from_json(file)
    kind, tracker = settings.get("model_type"), None
    if kind == "sam3_video":
        tracker = settings.get("tracker_config")
        settings = settings.get("detector_config")
    elif kind != "sam3":
        raise UnknownModel(
            f"{folder} holds a model of type '{kind}'. samforge knows 'sam3' and 'sam3_video'."
        )
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{file} is no configuration of SAM 3: detector_config is {settings!r:.80}. "
            "Download it again."
        )
    check_values(settings, str(file))
    # transformers' validation raises what its version likes.
    with native_errors(lambda error: _no_config(file, error)):
        config = Sam3Config(**settings)
        check_heads(config, str(file))
        check_values(config.to_dict(), str(file))
        if len(config.vision_config.scale_factors) < 2:
            raise ValueError("vision_config.scale_factors names fewer than two feature maps")
        state_shapes(config)
    return config, tracker if isinstance(tracker, dict) else None


def _no_config(file: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{file} is no configuration of SAM 3 ({error}). Download it again.")


def _tokenizer_in(folder: Path) -> Path | None:
    file = folder / "tokenizer.json"
    return file if file.is_file() else None


def _tokenizer_beside(weights: Path) -> Path:
    tokenizer = _tokenizer_in(weights.parent)
    if tokenizer is None:
        raise CheckpointError(
            f"{weights.name} comes without a tokenizer, and {weights.parent} has no "
            f"tokenizer.json. {TOKENIZER_HELP}"
        )
    return tokenizer


def _eos_id(tokenizer: Path, vocabulary: int) -> int:
    """Last token of an empty phrase: what the tokenizer itself puts at the end."""
    with native_errors(lambda error: CheckpointError(f"{tokenizer} is no tokenizer ({error}).")):
        loaded = Tokenizer.from_str(tokenizer.read_text(encoding="utf-8-sig"))
        loaded.no_padding()  # a saved padding may be as long as it likes
        loaded.no_truncation()
        ids = loaded.encode("").ids
        used = [*ids, *(token for phrase in PROBES for token in loaded.encode(phrase).ids)]
    if loaded.get_vocab_size() > vocabulary:
        raise CheckpointError(
            f"{tokenizer} has {loaded.get_vocab_size()} tokens and the model knows {vocabulary}: "
            f"it belongs to another model. {TOKENIZER_HELP}"
        )
    highest = max([*used, *loaded.get_vocab(with_added_tokens=True).values()], default=0)
    if highest >= vocabulary:
        raise CheckpointError(
            f"{tokenizer} gives the token id {highest}, and the model knows 0 to {vocabulary - 1}: "
            f"it is damaged, or belongs to another model. {TOKENIZER_HELP}"
        )
    if not ids:
        raise CheckpointError(
            f"{tokenizer} adds no end-of-text token. SAM 3 needs CLIP's tokenizer."
        )
    return int(ids[-1])


def _license_in(folder: Path) -> str:
    files = sorted(folder.glob("LICENSE*"))
    return SAM_NOTICE + "".join("\n" + file.read_text(errors="replace") for file in files)
