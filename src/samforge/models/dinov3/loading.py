"""Find a DINOv3 checkpoint by name: a folder, SAM 3D Body's file, or a Hugging Face id."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor
from transformers import DINOv3ViTConfig

from samforge.core.errors import CheckpointKeysError, SettingError, UnknownModel
from samforge.models.dinov3.body_names import ENCODER, BodySource
from samforge.models.dinov3.checkpoint import Dinov3Checkpoint, state_shapes
from samforge.models.dinov3.config import (
    ARCHITECTURES,
    BODY,
    config_from_settings,
    named_config,
    with_image_size,
)
from samforge.models.folders import folder_from_hub, table_from_json, weight_files
from samforge.models.sources import RandomSource, SafetensorsSource, TorchFileSource

MODEL_TYPE = "dinov3_vit"
"""transformers' name of the architecture in ``config.json``."""
BODY_FILE = "model.ckpt"
"""SAM 3D Body's checkpoint in its repository."""
DINOV3_NOTICE = (
    "The weights in this bundle are DINO Materials by Meta, used under the DINOv3 License:\n"
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license/\n"
    "Whoever passes the bundle on passes on that licence and its terms.\n"
)
BODY_NOTICE = (
    "The weights in this bundle are part of SAM 3D Body by Meta: SAM Materials, used under the SAM "
    "License:\nhttps://github.com/facebookresearch/sam-3d-body/blob/main/LICENSE\n"
    "Whoever passes the bundle on passes on that licence and its terms.\n"
)
RANDOM_NOTICE = "The weights in this bundle are random numbers: nobody's work, without meaning.\n"
HELP = (
    "Give a folder with config.json and safetensors files of a DINOv3 ViT, SAM 3D Body's "
    f"model.ckpt, or a Hugging Face id such as {BODY}."
)
_UNPREFIXED = re.compile(r"^layer\.")


class Dinov3Source(SafetensorsSource):
    """transformers' files; those of its fourth version call ``model.layer.0`` ``layer.0``."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        super().__init__(files)
        stored = super().names()
        self._stored = {_UNPREFIXED.sub("model.layer.", name): name for name in stored}

    def names(self) -> frozenset[str]:
        """Names as transformers' fifth version has them."""
        return frozenset(self._stored)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        return super().tensor(self._stored[name])


class RandomBackbone(RandomSource):
    """Random weights, with the layer scales that training starts from.

    Scales near zero, as drawn weights would be, leave nothing of the layers in the features.
    """

    def __init__(self, config: DINOv3ViTConfig, seed: int) -> None:
        super().__init__(state_shapes(config), seed, config.initializer_range)
        self._layer_scale = float(config.layerscale_value)

    def tensor(self, name: str) -> Tensor:
        """Draw one tensor; the same name and seed give the same values in any order."""
        tensor = super().tensor(name)
        return tensor.fill_(self._layer_scale) if name.endswith(".lambda1") else tensor


def is_dinov3(name: str) -> bool:
    """Whether a name means a DINOv3 backbone, as far as names and local files tell; cheap.

    True for the architectures known by name, a folder with a DINOv3 ``config.json`` or with SAM 3D
    Body's ``model.ckpt``, a ``.ckpt`` file, and a Hugging Face id with
    ``dinov3`` in it. Nothing is downloaded.
    """
    path = Path(name)
    if path.is_dir():
        config = path / "config.json"
        if config.is_file():
            return table_from_json(config).get("model_type") == MODEL_TYPE
        return (path / BODY_FILE).is_file()
    if path.is_file():
        # sam3.pt is Meta's other file of the kind; suffixes tell them apart without reading.
        return path.suffix == ".ckpt"
    return name in ARCHITECTURES or "dinov3" in name.casefold()


def checkpoint_from_name(
    name: str, *, image_size: int | None = None, random_weights: bool = False, seed: int = 0
) -> Dinov3Checkpoint:
    """Find a checkpoint, check every name in it, and set the image size.

    Args:
        name: A transformers folder, SAM 3D Body's ``model.ckpt`` or its folder, or a Hugging Face
            id. With random weights also one of ``ARCHITECTURES``, of which nothing is downloaded.
        image_size: Side in pixels, a multiple of 16; None keeps the model's own, which for SAM 3D
            Body is 512.
        random_weights: Use the architecture with random weights.
        seed: Of the random weights.

    Raises:
        UnknownModel: No such model, or one of another architecture.
        GatedModel: The id exists, but access was not granted.
        CheckpointError: Files are missing or damaged.
        CheckpointKeysError: Tensors are missing or unexpected.
        SettingError: The image size does not fit the patches, or the model has no weights.
    """
    if random_weights and name in ARCHITECTURES:
        checkpoint = _random(name, named_config(name), seed)
    elif Path(name).is_file():
        checkpoint = _body(name, Path(name))
    else:
        checkpoint = _from_folder(name, seed if random_weights else None)
    if random_weights and not isinstance(checkpoint.source, RandomBackbone):
        checkpoint = _random(name, checkpoint.config, seed)
    with_image_size(checkpoint.config, image_size)
    checkpoint.check()
    return checkpoint


def _from_folder(name: str, seed: int | None) -> Dinov3Checkpoint:
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    if not (folder / "config.json").is_file():
        if (folder / BODY_FILE).is_file():
            return _body(name, folder / BODY_FILE)
        raise UnknownModel(
            f"{folder} has neither a config.json nor a {BODY_FILE}, so it is no model folder. "
            f"{HELP}"
        )
    file = folder / "config.json"
    settings = table_from_json(file)
    kind = settings.get("model_type")
    if kind != MODEL_TYPE:
        raise UnknownModel(f"{folder} holds a model of type '{kind}', not '{MODEL_TYPE}'. {HELP}")
    config = config_from_settings(settings, place=str(file))
    if seed is not None:
        return _random(name, config, seed)
    return Dinov3Checkpoint(
        name=name,
        config=config,
        source=Dinov3Source(weight_files(folder)),
        license_text=_with_license(DINOV3_NOTICE, folder),
    )


def _body(name: str, file: Path) -> Dinov3Checkpoint:
    stored = TorchFileSource(file)
    if not any(key.startswith(ENCODER) for key in stored.names()):
        some = ", ".join(sorted(stored.names())[:3])
        raise CheckpointKeysError(
            f"{file} holds no tensor behind '{ENCODER}' (it begins with {some}), so it is not SAM "
            f"3D Body's checkpoint. {HELP}"
        )
    source = BodySource(stored)
    return Dinov3Checkpoint(
        name=name,
        config=config_from_settings(source.settings(), place=str(file)),
        source=source,
        license_text=_with_license(BODY_NOTICE, file.parent),
        periods=source.periods(),
    )


def _random(name: str, config: DINOv3ViTConfig, seed: int) -> Dinov3Checkpoint:
    return Dinov3Checkpoint(
        name=name,
        config=config,
        source=RandomBackbone(config, seed),
        license_text=RANDOM_NOTICE,
    )


def _downloaded(name: str) -> Path:
    if name in ARCHITECTURES and "/" not in name:
        raise SettingError(f"Nobody trained {name}: it has no weights. Add --random-weights.")
    # SAM 3D Body's repository also holds a body model of 700 MB that the backbone has no use for.
    patterns = [BODY_FILE, "LICENSE*"] if name == BODY else ["*.json", "*.safetensors", "LICENSE*"]
    return folder_from_hub(name, patterns, allowed=HELP)


def _with_license(notice: str, folder: Path) -> str:
    files = sorted(folder.glob("LICENSE*"))
    return notice + "".join("\n" + file.read_text(errors="replace") for file in files)
