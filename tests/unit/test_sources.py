"""Tensors by name from files: whole ones are read, broken and dangerous ones refused."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from samforge.core.errors import CheckpointError
from samforge.models.sources import RandomSource, SafetensorsSource, TorchFileSource


@pytest.fixture
def tensors() -> dict[str, Any]:
    return {
        "a.weight": torch.arange(6.0).view(2, 3).half(),
        "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "b": torch.tensor([[7]]),
    }


def assert_holds(source: Any, tensors: dict[str, Any]) -> None:
    assert source.names() == frozenset(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(source.tensor(name), tensor)
        assert source.tensor(name).dtype == tensor.dtype


def digest_of(*files: Path) -> str:
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return f"sha256:{hashlib.sha256(digests).hexdigest()}"


def test_one_safetensors_file(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsSource((tmp_path / "model.safetensors",))
    assert_holds(source, tensors)
    assert source.digest() == digest_of(tmp_path / "model.safetensors")


def test_shards(tensors: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"b": tensors["b"]}, first)
    save_file({name: tensors[name] for name in ("a.weight", "a.bias")}, second)
    source = SafetensorsSource((first, second))
    assert_holds(source, tensors)
    assert source.digest() == digest_of(first, second)
    # In any order they are the same checkpoint.
    assert SafetensorsSource((second, first)).digest() == source.digest()


def test_two_tensors_of_one_name(tensors: dict[str, Any], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"b": tensors["b"] + 1}, tmp_path / "model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"b stands in model\.safetensors and in model\.fp16"):
        SafetensorsSource((tmp_path / "model.safetensors", tmp_path / "model.fp16.safetensors"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_torch_file(tensors: dict[str, Any], tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "sam3.pt"
    torch.save({"model": tensors, "step": 3} if nested else tensors, path)
    source = TorchFileSource(path)
    assert_holds(source, tensors)
    assert source.digest() == digest_of(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "sam3.pt"])
def test_a_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    tensors = {f"layer.{index}": torch.zeros(300) for index in range(9)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="delete the file, download it again") as error:
        SafetensorsSource((path,)) if path.suffix == ".safetensors" else TorchFileSource(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("make", [lambda path: SafetensorsSource((path,)), TorchFileSource])
def test_a_file_that_is_not_there(tmp_path: Path, make: Any) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.bin does not exist\. Download"):
        make(tmp_path / "gone.bin")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, legacy: bool) -> None:
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "sam3.pt"
    if legacy:
        path.write_bytes(pickle.dumps({"detector.x": trap}))
    else:
        torch.save({"detector.x": trap, "detector.y": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError) as error:
        TorchFileSource(path)
    assert not trap.path.exists()
    assert "weights_only" not in str(error.value)  # no advice to run it anyway
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()  # it would have worked


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"a": torch.zeros(2), "step": 3}, {"model": {"a": 1}}]
)
def test_a_torch_file_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        TorchFileSource(tmp_path / "other.pt")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("photo.png", b"png")
    with pytest.raises(CheckpointError, match=r"photos\.pt"):
        TorchFileSource(tmp_path / "photos.pt")


SHAPES = {
    "layer.weight": (400, 50),
    "layer.bias": (400,),
    "layer_norm1.weight": (64,),
    "layer_norm1.bias": (64,),
    "query_embed.weight": (10, 32),
}


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    first, again = RandomSource(SHAPES, 7, 0.02), RandomSource(dict(SHAPES), 7, 0.02)
    forwards = {name: first.tensor(name) for name in SHAPES}
    torch.manual_seed(1)  # nor on torch's own generator
    backwards = {name: again.tensor(name) for name in reversed(SHAPES)}
    for name, shape in SHAPES.items():
        assert forwards[name].shape == shape
        assert torch.equal(forwards[name], backwards[name])
    other = RandomSource(SHAPES, 8, 0.02)
    assert not torch.equal(forwards["layer.weight"], other.tensor("layer.weight"))
    same_shape = RandomSource({"a": (9,), "b": (9,)}, 7, 0.02)
    assert not torch.equal(same_shape.tensor("a"), same_shape.tensor("b"))
    assert first.digest() == again.digest() == "random:seed=7"
    assert other.digest() == "random:seed=8"


def test_random_weights_are_plausible() -> None:
    source = RandomSource(SHAPES, 0, 0.02)
    assert source.names() == frozenset(SHAPES)
    assert torch.equal(source.tensor("layer_norm1.weight"), torch.ones(64))
    assert torch.equal(source.tensor("layer_norm1.bias"), torch.zeros(64))
    assert torch.equal(source.tensor("layer.bias"), torch.zeros(400))
    weight = source.tensor("layer.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=5e-4)


def test_random_weights_do_not_disturb_the_generator() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    RandomSource(SHAPES, 0, 0.02).tensor("layer.weight")
    assert torch.equal(torch.rand(4), wanted)
