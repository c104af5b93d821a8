"""Finding a checkpoint by name: every way there is, and every way it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file
from transformers import Sam3Model

from samforge.core.errors import (
    CheckpointError,
    CheckpointKeysError,
    GatedModel,
    SettingError,
    UnknownModel,
)
from samforge.models import tiny
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint

Make = Callable[..., Any]


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(small_folder, tmp_path / "sam3"))


def assert_small(found: Any, checkpoint: Make) -> None:
    """The loaded tensors are the small model's."""
    wanted = checkpoint("small").source
    for name in wanted.names():
        stored = name if name in found.source.names() else f"detector_model.{name}"
        assert torch.equal(found.source.tensor(stored), wanted.tensor(name)), name
    assert part_from_checkpoint(found, "text").spec.inputs[0].shape == ("prompts", 12)


def test_a_folder(folder: Path, checkpoint: Make) -> None:
    (folder / "LICENSE").write_text("The licence of these weights.")
    found = checkpoint_from_name(str(folder))
    assert_small(found, checkpoint)
    assert found.name == str(folder)
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.eos_id == 299
    assert "SAM License" in found.license_text
    assert found.license_text.endswith("The licence of these weights.")
    assert found.source.digest().startswith("sha256:")


def test_a_folder_in_shards(folder: Path, stock_model: Make, checkpoint: Make) -> None:
    (folder / "model.safetensors").unlink()
    stock_model("small").save_pretrained(folder, max_shard_size="400KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert_small(checkpoint_from_name(str(folder)), checkpoint)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: {shards[1].name}. Download"):
        checkpoint_from_name(str(folder))


def test_a_video_folder(folder: Path, checkpoint: Make) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "sam3_video", "detector_config": config, "tracker_config": {}})
    )
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    tensors["tracker_model.mask_decoder.iou_token.weight"] = torch.zeros(1)
    tensors["tracker_neck.fpn_layers.0.proj1.weight"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    assert_small(checkpoint_from_name(str(folder)), checkpoint)


def test_the_tiny_model() -> None:
    found = checkpoint_from_name("tiny")
    assert found.tokenizer == tiny.TOKENIZER_PATH
    assert found.license_text == tiny.LICENSE_NOTICE
    assert found.source.digest() == tiny.weights_digest()


def test_another_image_size(folder: Path) -> None:
    found = checkpoint_from_name(str(folder), image_size=140)
    assert found.image.size == 140
    part = part_from_checkpoint(found, "vision")
    maps = part({"images": torch.zeros(1, 3, 140, 140)})
    assert [tuple(tensor.shape) for tensor in maps.values()] == [
        *((1, 32, side, side) for side in (40, 20, 10)),
        (1, 1, 32),
    ]
    with pytest.raises(SettingError, match="The nearest sizes are 140 and 154"):
        checkpoint_from_name(str(folder), image_size=150)


def test_missing_and_unexpected_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.scale"] = tensors.pop("text_projection.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointKeysError) as error:
        checkpoint_from_name(str(folder))
    assert "1 missing: text_projection.bias" in str(error.value)
    assert "1 unexpected: text_projection.scale" in str(error.value)


def test_a_half_downloaded_folder(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="delete the file, download it again"):
        checkpoint_from_name(str(folder))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: it holds no \.safetensors file"):
        checkpoint_from_name(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ['{"model_type": "sa', "[]", "\udcff", ""])
def test_a_damaged_json(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError, match=f"{name}.*Download it again"):
        checkpoint_from_name(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "sam3_video"},
        {"model_type": "sam3_video", "detector_config": 3},
        {"vision_config": "large"},
        {"detr_decoder_config": {"num_queries": "many"}},
    ],
)
def test_a_configuration_that_is_none(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=r"config\.json is no configuration of SAM 3"):
        checkpoint_from_name(str(folder))


def test_an_index_without_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no shards"):
        checkpoint_from_name(str(folder))


def test_a_shard_outside_of_the_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"text_projection.bias": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"incomplete: secret\.safetensors"):
        checkpoint_from_name(str(folder))


def test_a_folder_of_another_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(UnknownModel, match=r"of type 'sam2'\. samforge knows 'sam3' and"):
        checkpoint_from_name(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UnknownModel, match=r"has no config\.json, so it is no model folder"):
        checkpoint_from_name(str(folder))


@pytest.mark.parametrize(
    "name", ["tinny", "no/such/folder", "/no/such", "./folder", "../sam3", "a b/c"]
)
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UnknownModel, match=r"There is no .*Give 'tiny', a folder") as error:
        checkpoint_from_name(name)
    assert name in str(error.value)


def test_real_weights_need_their_tokenizer(folder: Path, small_folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json\. Put the tokenizer\.json"):
        checkpoint_from_name(str(folder))
    other = small_folder / "tokenizer.json"
    assert checkpoint_from_name(str(folder), tokenizer=other).tokenizer == other
    random = checkpoint_from_name(str(folder), random_weights=True)
    assert random.tokenizer is None
    assert random.eos_id == 299


@pytest.mark.parametrize("content", ["{}", "no json", None])
def test_a_file_that_is_no_tokenizer(folder: Path, content: str | None) -> None:
    tokenizer = folder / "mine.json"
    if content is not None:
        tokenizer.write_text(content)
    with pytest.raises(CheckpointError, match=r"mine\.json is no tokenizer"):
        checkpoint_from_name(str(folder), tokenizer=tokenizer)


def test_a_tokenizer_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    from samforge.models.sam3.byte_tokenizer import byte_tokenizer

    larger = tmp_path / "larger.json"
    byte_tokenizer(301).save(str(larger))
    with pytest.raises(CheckpointError, match="has 301 tokens and the model knows 300"):
        checkpoint_from_name(str(folder), tokenizer=larger)
    endless = tmp_path / "endless.json"
    Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(endless))
    with pytest.raises(CheckpointError, match="adds no end-of-text token"):
        checkpoint_from_name(str(folder), tokenizer=endless)


def test_random_weights_take_only_the_architecture(folder: Path, small_config: Make) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    first = checkpoint_from_name(str(folder), random_weights=True, seed=3)
    again = checkpoint_from_name(str(folder), random_weights=True, seed=3)
    assert "random numbers" in first.license_text
    assert first.source.digest() == "random:seed=3"
    stock = Sam3Model(small_config()).state_dict()
    assert first.source.names() == frozenset(stock)
    for name, tensor in stock.items():
        assert first.source.tensor(name).shape == tensor.shape
        assert torch.equal(first.source.tensor(name), again.source.tensor(name))


def test_random_weights_of_the_published_model_download_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = checkpoint_from_name("facebook/sam3", random_weights=True, image_size=924)
    assert found.image.size == 924
    assert found.context == 32
    assert found.eos_id == 49407
    assert len(found.source.names()) == 1468
    text = "text_encoder.text_model.embeddings.token_embedding.weight"
    assert found.source.tensor(text).shape == (49408, 1024)


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub_cache: Path, folder: Path) -> None:
    """Lay a folder into the cache as its only snapshot."""
    repository = hub_cache / "models--someone--sam3"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_an_id_in_the_cache(hub_cache: Path, small_folder: Path, checkpoint: Make) -> None:
    cached(hub_cache, small_folder)
    found = checkpoint_from_name("someone/sam3")
    assert_small(found, checkpoint)
    assert found.name == "someone/sam3"


def test_an_id_half_in_the_cache(hub_cache: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    cached(hub_cache, folder)
    with pytest.raises(CheckpointError, match=r"incomplete|cannot be downloaded"):
        checkpoint_from_name("someone/sam3")


def test_an_id_that_is_nowhere_offline(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"someone/sam3 is not in the local cache") as error:
        checkpoint_from_name("someone/sam3")
    assert "samforge build /path/to/folder" in str(error.value)
    assert not isinstance(error.value, UnknownModel | GatedModel)


ANSWER: Any = SimpleNamespace(headers={}, request=None)
"""What an error of the hub wants to know of the server's answer."""


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            errors.GatedRepoError("Access is restricted", response=ANSWER),
            GatedModel,
            r"Accept its licence at https://huggingface\.co/facebook/sam3, log in .*hf auth login",
        ),
        (
            errors.RepositoryNotFoundError("404", response=ANSWER),
            UnknownModel,
            "Hugging Face has no such model",
        ),
        (
            errors.HfHubHTTPError("503 Server Error", response=ANSWER),
            CheckpointError,
            "cannot be downloaded .503 Server Error",
        ),
        (
            errors.LocalEntryNotFoundError("no connection"),
            CheckpointError,
            "not in the local cache and cannot be downloaded .no connection",
        ),
        (OSError(28, "No space left on device"), CheckpointError, "No space left on device"),
        (ConnectionError("reset by peer"), CheckpointError, "reset by peer"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[CheckpointError],
    message: str,
) -> None:
    def download(name: str, **_: object) -> None:
        assert name == "facebook/sam3"
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint_from_name("facebook/sam3")
    assert type(error.value) is expected
    assert error.value.__cause__ is raised
