"""Where Q/DQ goes, with which numbers, and what is left float, on graphs small enough to count."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samforge.core.errors import BuildError, SettingError
from samforge.core.recipe import OBSERVERS, Quantization
from samforge.core.session import PartSpec, TensorSpec
from samforge.core.structure import json_from_value
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    save_exported,
)
from samforge.transform.fuse import fuse
from samforge.transform.quantize import (
    CalibrationWarning,
    calibrate,
    check_skips,
    e4m3_program,
    names_from_program,
    program_from_calibrated,
    quantize,
    smoothed_program,
)
from samforge.transform.quantize.patterns import matches
from samforge.transform.quantize.placement import ATTENTION, COMPUTED, PATCHES
from samforge.transform.quantize.simulate import Simulation, round_e4m3, round_int8
from samforge.transform.quantize.sites import group_from_path
from samforge.transform.quantize.smooth import smoothing_factors

pytestmark = pytest.mark.usefixtures("one_thread")

q_ops = torch.ops.quantized_decomposed
WIDTH = 16
OUTLIERS = {3: 120.0, 11: 64.0}
"""Channels of both LayerNorms of :class:`Layer`, and by how much they stand out."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        heads = [
            getattr(self, name)(tokens).unflatten(-1, (2, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        mixed = F.scaled_dot_product_attention(*heads, scale=0.5)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Layer(nn.Module):
    """A ViT layer on (B, 4, 4, D) with windows of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(), Mlp()
        with torch.no_grad():
            for norm, linears in (
                (self.layer_norm1, [self.attention.q_proj, self.attention.k_proj]),
                (self.layer_norm2, [self.mlp.fc1]),
            ):
                if norm is self.layer_norm1:
                    linears.append(self.attention.v_proj)
                for channel, factor in OUTLIERS.items():
                    norm.weight[channel] *= factor
                    norm.bias[channel] += factor
                    for linear in linears:
                        linear.weight[:, channel] /= factor

    def forward(self, hidden: Tensor) -> Tensor:
        normed = F.pad(self.layer_norm1(hidden), (0, 0, 0, 0, 0, 0))
        windows = normed.view(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
        attended = self.attention(windows)
        attended = attended.view(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5)
        hidden = hidden + attended.reshape(hidden.shape)
        return hidden + self.mlp(self.layer_norm2(hidden))


class Small(nn.Module):
    """One of everything: patches, a ViT layer, a neck, a head, attention, a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, WIDTH, 2, 2)
        self.layers = nn.ModuleList([Layer()])
        self.levels = nn.ModuleList([nn.ConvTranspose2d(WIDTH, 8, 2, 2), nn.Conv2d(WIDTH, 8, 1)])
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.presence_head = nn.Linear(WIDTH, 1)
        self.register_buffer("position", torch.linspace(0, 1, WIDTH))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        hidden = self.patch_embeddings(images).permute(0, 2, 3, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        spatial = hidden.permute(0, 3, 1, 2)
        normed = self.norm(hidden)
        query = self.query(normed + self.position) + self.query(normed)
        computed = F.linear(query, self.query.weight * 2)
        return (*(level(spatial) for level in self.levels), self.presence_head(computed))


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval().requires_grad_(False)
    return _exported(module, torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def spec() -> PartSpec:
    def tensor(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=shape)

    return PartSpec(
        name="vision",
        inputs=(tensor("images", "batch", 3, 8, 8),),
        outputs=(
            tensor("level_0", "batch", 8, 8, 8),
            tensor("level_1", "batch", 8, 4, 4),
            tensor("presence", "batch", 4, 4, 1),
        ),
    )


def _exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


def _images(count: int, batch: int = 1) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield {"images": torch.randn(batch, 3, 8, 8, generator=generator)}


def _samples() -> Iterator[dict[str, Tensor]]:
    return _images(8)


def _calibrated(program: ExportedProgram, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(program, _samples, part="vision", settings=Quantization(**settings))


def _sqnr_db(exact: Tensor, rounded: Tensor) -> float:
    noise = float((exact - rounded).square().sum())
    return 10 * math.log10(float(exact.square().sum()) / noise) if noise else math.inf


def _run(program: ExportedProgram, sample: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(program.module()(*sample.values()))


def _quantized_inputs(program: ExportedProgram) -> list[str]:
    """Names of the operators whose results are quantized, in order."""
    return [
        node.args[0].name
        for node in program.graph.nodes
        if node.target is q_ops.quantize_per_tensor.default
    ]


def test_every_q_is_where_it_belongs(program: ExportedProgram) -> None:
    calibrated = _calibrated(program)
    quantized = program_from_calibrated(calibrated)
    sources = sorted(name.rstrip("_0123456789") for name in _quantized_inputs(quantized))
    # One for q, k and v together; attention's output; the LayerNorm; GELU; one for both levels of
    # the neck; and the query linear, which runs twice.
    assert sources == ["add", "flatten", "gelu", "layer_norm", "layer_norm", "permute", "reshape"]
    assert sorted(site.path for site in calibrated.sites) == [
        *(f"layers.0.attention.{name}" for name in ("k_proj", "o_proj", "q_proj", "v_proj")),
        "layers.0.mlp.fc1",
        "layers.0.mlp.fc2",
        "levels.0",
        "levels.1",
        "query",
        "query",
    ]


def test_every_operator_left_float_has_its_reason(program: ExportedProgram) -> None:
    left = {(one.path, one.operator): one.reason for one in _calibrated(program).left}
    assert left[("patch_embeddings", "conv2d")] == PATCHES
    assert left[("layers.0.attention", "matmul")] == ATTENTION
    assert left[("presence_head", "linear")].startswith("presence logit")
    assert COMPUTED in left.values()
    assert len(left) == 4


def test_shares_count_multiplications(program: ExportedProgram) -> None:
    calibrated = _calibrated(program)
    # Of one image: 16 patches of 12 values; 4 linears of 16 x 16 and two of 16 x 32 for 16 tokens;
    # windows of 4 tokens, twice; a level that quadruples the pixels, and one that does not; the
    # query twice and once more with a computed weight; one presence logit a token.
    tokens, square = 16, WIDTH * WIDTH
    layer = tokens * (4 * square + 4 * square) + 2 * tokens * 4 * WIDTH
    neck = tokens * WIDTH * 8 * 4 + tokens * WIDTH * 8
    expected = tokens * 12 * WIDTH + layer + neck + 3 * tokens * square + tokens * WIDTH
    assert calibrated.products == expected
    assert {site.path: site.products for site in calibrated.sites}["levels.0"] == 16 * WIDTH * 32


def test_scales_are_the_worked_numbers() -> None:
    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -0.5], [0.25, 4.0]]))
    program = _exported(nn.Sequential(linear).eval().requires_grad_(False), torch.zeros(2, 2))
    name = str(program.graph_signature.user_inputs[0])
    found = quantize(
        program,
        lambda: iter([{name: torch.tensor([[-3.0, 1.0]])}, {name: torch.tensor([[2.0, 2.5]])}]),
        part="head",
        settings=Quantization(),
        precision="int8",
    )
    state = found.program.state_dict
    assert state["0.weight_int8"].tolist() == [[127, -64], [8, 127]]  # 7.9375 and -63.5 to even
    assert state["0.weight_scale"].tolist() == pytest.approx([1 / 127, 4 / 127])
    assert state["0.weight_zero_point"].tolist() == [0, 0]
    quantizer = next(
        node
        for node in found.program.graph.nodes
        if node.target is q_ops.quantize_per_tensor.default
    )
    assert quantizer.args[1:] == (pytest.approx(3 / 127.5), 0, -128, 127, torch.int8)
    scales = found.scales["0"]
    assert scales.activation == pytest.approx(3 / 127.5)
    assert scales.activation_e4m3 == pytest.approx(3 / 448)
    assert scales.weight_e4m3.tolist() == pytest.approx([1 / 448, 4 / 448])
    # 1 is 42.5 steps of 3 / 127.5, which rounds to the even 42.
    (result,) = (found.program.module()(torch.tensor([[1.0, 0.0]])),)
    step = 42 * 3 / 127.5
    assert result.tolist()[0] == pytest.approx([step, 8 * 4 / 127 * step])


def test_weights_are_stored_once_and_as_int8(program: ExportedProgram, tmp_path: Path) -> None:
    quantized = program_from_calibrated(_calibrated(program))
    state = {**quantized.state_dict, **quantized.constants}
    assert "layers.0.attention.q_proj.weight" not in state
    assert state["layers.0.attention.q_proj.weight_int8"].dtype == torch.int8
    # Shared by an operator with a computed weight, it is needed as float too.
    assert state["query.weight"].dtype == torch.float32
    floats = sum(t.nbytes for name, t in state.items() if name.endswith("proj.weight"))
    assert floats == 0
    for name in ("layer_norm1", "mlp.fc1", "attention.o_proj"):
        assert state[f"layers.0.{name}.bias"].dtype == torch.float32
    save_exported(quantized, tmp_path / "q.pt2")
    reloaded = exported_from_file(tmp_path / "q.pt2")
    for sample in (next(_images(1)), next(_images(1, batch=3))):
        for one, other in zip(_run(quantized, sample), _run(reloaded, sample), strict=True):
            assert torch.equal(one, other)


def test_interface_and_module_names_stay(program: ExportedProgram) -> None:
    quantized = program_from_calibrated(_calibrated(program))
    assert quantized.graph_signature.user_inputs == ("images",)
    limits = [(int(r.lower), r.upper.is_Integer) for r in quantized.range_constraints.values()]
    assert limits == [(1, False)]
    paths = {
        list(node.meta["nn_module_stack"].values())[-1][0]
        for node in quantized.graph.nodes
        if node.target is torch.ops.aten.linear.default
    }
    assert {"layers.0.attention.q_proj", "layers.0.mlp.fc2", "presence_head"} <= paths
    assert quantized.example_inputs is None
    assert not any("stack_trace" in node.meta for node in quantized.graph.nodes)


def test_the_float_program_is_left_as_it_was(program: ExportedProgram) -> None:
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    program_from_calibrated(_calibrated(program))
    assert all(torch.equal(program.state_dict[name], tensor) for name, tensor in before.items())


def test_smoothing_changes_no_bit(program: ExportedProgram) -> None:
    calibrated = _calibrated(program)
    assert [one.pair.writer for one in calibrated.smoothings] == [
        "layers.0.layer_norm1",
        "layers.0.attention.v_proj",
        "layers.0.layer_norm2",
    ]
    smoothed = smoothed_program(calibrated)
    changed = smoothed.state_dict["layers.0.layer_norm1.weight"]
    assert not torch.equal(changed, program.state_dict["layers.0.layer_norm1.weight"])
    for sample in _images(3, batch=2):
        for one, other in zip(_run(program, sample), _run(smoothed, sample), strict=True):
            assert torch.equal(one, other)


def test_smoothing_evens_out_the_outliers(program: ExportedProgram) -> None:
    calibrated = _calibrated(program)
    factors = calibrated.smoothings[2].factors
    others = [channel for channel in range(WIDTH) if channel not in OUTLIERS]
    assert float(factors[3]) >= 16 * float(factors[others].median())
    assert torch.equal(factors.log2(), factors.log2().round())
    sample = next(_images(1))
    exact = _run(program, sample)
    plain = _run(program_from_calibrated(_calibrated(program, smooth=False)), sample)
    smooth = _run(program_from_calibrated(calibrated), sample)
    gain = _sqnr_db(exact[1], smooth[1]) - _sqnr_db(exact[1], plain[1])
    assert gain > 6
    assert _sqnr_db(exact[1], smooth[1]) > 30


def test_factors_are_the_worked_numbers() -> None:
    activation, weight = torch.tensor([64.0, 1.0, 1.0, 0.0, 4.0]), torch.ones(5)
    # Exponents at alpha 0.5 are 3, 0, 0, none and 1; their median is 0 (the lower of the two).
    assert smoothing_factors(activation, weight, 0.5).tolist() == [8, 1, 1, 1, 2]
    assert smoothing_factors(activation, weight, 1.0).tolist() == [64, 1, 1, 1, 4]
    assert smoothing_factors(activation, weight, 0.0).tolist() == [1, 1, 1, 1, 1]
    # A column four times as large takes half as much.
    assert smoothing_factors(torch.ones(3), torch.tensor([1.0, 16.0, 1.0]), 0.5)[1] == 0.25
    assert smoothing_factors(torch.zeros(2), torch.ones(2), 0.5).tolist() == [1, 1]


def test_a_norm_with_other_readers_is_left_alone(program: ExportedProgram) -> None:
    (left,) = _calibrated(program).not_smoothed
    assert (left.writer, left.reason) == ("norm", "its output is also read by add")


@pytest.mark.parametrize(
    ("pattern", "norm"),
    [
        ("layers.0.mlp", "layers.0.layer_norm2"),
        ("vision/layers.*.layer_norm2", "layers.0.layer_norm2"),
        ("*k_proj", "layers.0.layer_norm1"),
    ],
)
def test_smoothing_can_be_left_out(program: ExportedProgram, pattern: str, norm: str) -> None:
    calibrated = _calibrated(program, smooth_skip=(pattern, "text/layers.0.attention"))
    reasons = {one.writer: one.reason for one in calibrated.not_smoothed}
    assert reasons[norm] == f"left alone by '{pattern}'"
    assert [one.pair.writer for one in calibrated.smoothings] == [
        writer
        for writer in ("layers.0.layer_norm1", "layers.0.attention.v_proj", "layers.0.layer_norm2")
        if writer != norm
    ]


def test_skip_rules_say_which_pattern_skipped(program: ExportedProgram) -> None:
    calibrated = _calibrated(
        program, skip=("vision/layers.0.attention", "text"), skip_operators=("conv2d",)
    )
    reasons = {one.path: one.reason for one in calibrated.left if one.operator != "matmul"}
    assert reasons["layers.0.attention.o_proj"] == "skipped by 'vision/layers.0.attention'"
    assert reasons["levels.1"] == "operator conv2d is skipped"
    assert set(calibrated.groups) == {"layers.0.mlp", "levels.0", "query"}
    nothing = _calibrated(program, skip=("vision",))
    assert nothing.sites == ()
    assert _quantized_inputs(program_from_calibrated(nothing)) == []


def test_the_patch_embedding_is_quantized_on_request(program: ExportedProgram) -> None:
    paths = [site.path for site in _calibrated(program, patch_embedding=True).sites]
    assert paths[0] == "patch_embeddings"


def test_a_skip_pattern_that_matches_nothing_names_the_nearest(program: ExportedProgram) -> None:
    with pytest.raises(SettingError) as error:
        _calibrated(program, skip=("vision/layers.0.attn",))
    assert str(error.value).startswith(
        "quantization.skip: 'vision/layers.0.attn' matches no layer of vision. "
        "Nearest names: layers.0.attention"
    )


def test_patterns_are_checked_over_all_parts(program: ExportedProgram) -> None:
    names = {"vision": names_from_program(program), "text": names_from_program(program)}
    check_skips(
        Quantization(
            skip=("*/layers.0", "vision", "text/*q_proj"), smooth_skip=("norm", "text/layers.0.*")
        ),
        names,
    )
    wrong = {
        "quantization.skip: 'visoin/layers.0' names no part that is built. Parts: vision.": (
            Quantization(skip=("visoin/layers.0",))
        ),
        "quantization.smooth_skip: '*/layer_norm' matches no layer of vision, text. Nearest names: "
        "layers.0.layer_norm2, layers.0.layer_norm1, layers.": (
            Quantization(smooth_skip=("layer_norm",))
        ),
    }
    for message, settings in wrong.items():
        with pytest.raises(SettingError) as error:
            check_skips(settings, names)
        assert str(error.value) == message


def test_a_smoothing_pattern_of_this_part_must_match(program: ExportedProgram) -> None:
    with pytest.raises(SettingError, match="'vision/layer_norm9' matches no layer of vision"):
        _calibrated(program, smooth_skip=("vision/layer_norm9",))


def test_an_unknown_operator_names_the_nearest(program: ExportedProgram) -> None:
    with pytest.raises(SettingError) as error:
        _calibrated(program, skip_operators=("conv",))
    assert str(error.value) == (
        "quantization.skip_operators: there is no operator 'conv'. Nearest names: conv2d, "
        "conv_transpose2d."
    )


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*", "layers.3.mlp.fc1", True),
        ("layers.3", "layers.3.mlp.fc1", True),
        ("layers.3", "layers.31.mlp.fc1", False),
        ("layers.*.mlp", "layers.3.mlp.fc1", True),
        ("*fc1", "layers.3.mlp.fc1", True),
        ("mlp", "layers.3.mlp.fc1", False),
    ],
)
def test_patterns_name_modules_and_what_is_in_them(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("layers.3.attention.q_proj", "layers.3.attention"),
        ("layers.3.mlp.fc1", "layers.3.mlp"),
        (
            "decoder.decoder.layers.2.text_cross_attn.k_proj",
            "decoder.decoder.layers.2.text_cross_attn",
        ),
        ("levels.0.scale_layers.0", "levels.0"),
        ("levels.1.proj2", "levels.1"),
        ("masks.prompt_attention.o_proj", "masks.prompt_attention"),
        ("masks.skip_convolutions.1", "masks.skip_convolutions.1"),
        ("masks.upsampling_0", "masks"),
        ("projection", "projection"),
    ],
)
def test_groups_are_blocks(path: str, group: str) -> None:
    assert group_from_path(path) == group


def test_nan_names_the_layer(program: ExportedProgram) -> None:
    broken = _with(program, "layers.0.mlp.fc1.bias", float("nan"))
    with pytest.raises(BuildError) as error:
        _calibrated(broken)
    assert str(error.value) == (
        "Calibration of vision, sample 1: the input of layers.0.mlp.fc2 holds NaN or infinity, so "
        "it has no range. Look at this sample and at the weights before this layer."
    )


def test_infinity_behind_the_last_layer_is_found(program: ExportedProgram) -> None:
    broken = _with(program, "presence_head.bias", float("inf"))
    with pytest.raises(BuildError, match="sample 1: output 3 holds NaN or infinity"):
        _calibrated(broken)


def test_a_sample_that_is_not_finite_is_named(program: ExportedProgram) -> None:
    def samples() -> Iterator[dict[str, Tensor]]:
        yield from _images(2)
        yield {"images": torch.full((1, 3, 8, 8), float("inf"))}

    with pytest.raises(BuildError) as error:
        calibrate(program, samples, part="vision", settings=Quantization())
    assert str(error.value) == (
        "Calibration of vision, sample 3: the input images holds NaN or infinity. "
        "Look at this sample."
    )


def _with(program: ExportedProgram, name: str, value: float) -> ExportedProgram:
    module = program.module()
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), leaf).detach().clone()
    tensor.view(-1)[0] = value
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return _exported(module, torch.zeros(2, 3, 8, 8))


def test_no_samples_is_an_error(program: ExportedProgram) -> None:
    with pytest.raises(BuildError) as error:
        calibrate(program, lambda: iter(()), part="vision", settings=Quantization())
    assert str(error.value) == (
        "Calibration of vision got no samples. Give a folder of images or a video that holds at "
        "least one."
    )


def test_ranges_that_still_move_are_named(program: ExportedProgram) -> None:
    def growing() -> Iterator[dict[str, Tensor]]:
        for sample, scale in zip(_images(3), (1.0, 1.0, 5.0), strict=True):
            yield {"images": sample["images"] * scale}

    with pytest.warns(CalibrationWarning) as caught:
        calibrated = calibrate(program, growing, part="vision", settings=Quantization())
    assert "levels.0" in calibrated.moving
    message = str(caught[0].message)
    assert message.startswith("Calibration of vision: after 3 samples the ranges of ")
    assert "still grow by more than 10% with the last one. Use more samples" in message


def test_ranges_that_have_settled_say_nothing(program: ExportedProgram) -> None:
    def settled() -> Iterator[dict[str, Tensor]]:
        (sample,) = _images(1)
        return iter([sample, sample])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate(program, settled, part="v", settings=Quantization()).moving == ()


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_quantizes(program: ExportedProgram, observer: str) -> None:
    told: list[tuple[str, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        calibrated = calibrate(
            program,
            lambda: _images(3),
            part="vision",
            settings=Quantization(observer=observer),
            progress=lambda stage, done: told.append((stage, done)),
        )
    # Extremes of smoothed channels follow from one pass; anything else needs to see the values.
    expected = [("ranges", 1), ("ranges", 2), ("ranges", 3)]
    if observer != "min-max":
        expected += [("smoothed ranges", n) for n in (1, 2, 3)]
    assert told == expected
    simulation = Simulation(calibrated, precision="int8")
    exact, rounded = simulation.outputs(next(_samples()), {s.node for s in calibrated.sites})
    assert _sqnr_db(exact[1], rounded[1]) > 20


def test_one_pass_over_maxima_gives_the_range_of_what_is_smoothed(program: ExportedProgram) -> None:
    calibrated = _calibrated(program)
    smoothed = smoothed_program(calibrated)
    again = _calibrated(smoothed, smooth=False)
    own = {site.path: calibrated.input_scale[site.input] for site in calibrated.sites}
    other = {site.path: again.input_scale[site.input] for site in again.sites}
    assert own == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("kept", [(), ("layers.0.mlp", "levels.1")])
def test_simulation_equals_the_program(program: ExportedProgram, kept: tuple[str, ...]) -> None:
    calibrated = _calibrated(program)
    quantized = program_from_calibrated(calibrated, kept=kept)
    nodes = {site.node for site in calibrated.sites if site.group not in kept}
    for sample in _images(3, batch=2):
        exact, rounded = Simulation(calibrated, precision="int8").outputs(sample, nodes)
        for one, other in zip(exact, _run(program, sample), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(rounded, _run(quantized, sample), strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_kept_groups_stay_float(program: ExportedProgram) -> None:
    quantized = program_from_calibrated(_calibrated(program), kept=("layers.0.attention",))
    assert quantized.state_dict["layers.0.attention.q_proj.weight"].dtype == torch.float32
    # Its LayerNorm feeds nothing quantized, so it is not smoothed either.
    assert torch.equal(
        quantized.state_dict["layers.0.layer_norm1.weight"],
        program.state_dict["layers.0.layer_norm1.weight"],
    )
    assert "layers.0.mlp.fc1.weight_int8" in quantized.state_dict


def test_e4m3_rounds_as_the_format_does() -> None:
    values = torch.tensor([1.0625, 1.07, 1.1875, 447.0, 500.0, -500.0, 2.0**-9, 2.0**-11])
    # Three bits behind the point; ties to even; the largest number is 448, the smallest 2**-9.
    assert round_e4m3(values, 1.0).tolist() == [1.0, 1.125, 1.25, 448, 448, -448, 2.0**-9, 0]
    assert round_e4m3(torch.tensor([3.0]), 3.0 / 448).tolist() == pytest.approx([3.0])
    assert round_int8(torch.tensor([1.0, 5.0, -5.0]), 3.0 / 127.5).tolist() == pytest.approx(
        [42 * 3 / 127.5, 127 * 3 / 127.5, -128 * 3 / 127.5]
    )


def test_e4m3_program_stores_float8_and_agrees(program: ExportedProgram, tmp_path: Path) -> None:
    calibrated = _calibrated(program)
    small = e4m3_program(program_from_calibrated(calibrated), "vision")
    save_exported(small, tmp_path / "fp8.pt2")
    small = exported_from_file(tmp_path / "fp8.pt2")
    weight = small.state_dict["layers.0.mlp.fc1.weight_e4m3"]
    assert weight.dtype == torch.float8_e4m3fn
    assert "layers.0.mlp.fc1.weight_int8" not in small.state_dict
    sample = next(_images(1, batch=2))
    exact = _run(program, sample)
    simulated = Simulation(calibrated, precision="fp8").outputs(
        sample, {site.node for site in calibrated.sites}
    )[1]
    for reference, one, other in zip(exact, _run(small, sample), simulated, strict=True):
        assert _sqnr_db(reference, one) > 20
        assert _sqnr_db(reference, other) == pytest.approx(_sqnr_db(reference, one), abs=3)


def test_report_is_plain_json_and_adds_up(program: ExportedProgram) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        found = quantize(
            program, _samples, part="vision", settings=Quantization(), precision="int8"
        )
    report = found.report
    table = json.loads(json.dumps(json_from_value(report)))
    assert (table["part"], table["precision"], table["samples"]) == ("vision", "int8", 8)
    assert report.quantized_share + sum(one.share for one in report.left) == pytest.approx(1.0)
    assert {layer.path for layer in report.layers if layer.smoothed} == {
        *(f"layers.0.attention.{name}_proj" for name in "qkvo"),
        "layers.0.mlp.fc1",
    }
    assert [(one.writer, one.operator) for one in report.smoothed] == [
        ("layers.0.layer_norm1", "layer_norm"),
        ("layers.0.attention.v_proj", "linear"),
        ("layers.0.layer_norm2", "layer_norm"),
    ]
    assert report.smoothed[1].readers == ("layers.0.attention.o_proj",)
    assert set(found.scales) == {layer.path for layer in report.layers}


def test_a_precision_without_quantized_activations_is_refused(program: ExportedProgram) -> None:
    with pytest.raises(SettingError, match="precision fp16 has no activations to quantize"):
        quantize(
            program,
            lambda: iter([next(_samples())]),
            part="vision",
            settings=Quantization(),
            precision="fp16",
        )


def test_onnx_has_int8_initializers_and_the_same_numbers(
    program: ExportedProgram, spec: PartSpec, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

    quantized = program_from_calibrated(_calibrated(program))
    save_onnx(onnx_from_exported(quantized, spec), tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    tensors = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {t.data_type for t in model.graph.initializer if t.name.endswith("weight_int8")} == {3}
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 7
    assert sum(node.input[0] in tensors for node in nodes) == 9  # the query's weight is one
    for node in nodes:
        assert tensors[node.input[2]].dtype == np.int8
        assert not tensors[node.input[2]].any()
    axes = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "", "", ""]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"]
    )
    for batch in (1, 3):
        sample = next(_images(1, batch=batch))
        results = session.run(None, {"images": sample["images"].numpy()})
        for one, other in zip(results, _run(quantized, sample), strict=True):
            # A value between two steps may round to either: a step here, no more.
            assert _sqnr_db(other, torch.from_numpy(one)) > 40


@pytest.mark.parametrize("name", ["vision", "detector_boxes", "text"])
def test_what_sam3_keeps_float(
    name: str, exported_file: Callable[[str], Path], example: Callable[..., Any]
) -> None:
    sizes = {"batch": 1, "prompts": 2, "boxes": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        calibrated = calibrate(
            exported_from_file(exported_file(name)),
            lambda: (example(name, sizes, seed=seed) for seed in range(2)),
            part=name,
            settings=Quantization(),
        )
    quantized = {site.path for site in calibrated.sites}
    left = {one.path for one in calibrated.left}
    never = ("presence", "box_head", "box_rpb", "ref_point_head", "scoring", "mask_embedder")
    assert not any(word in path for path in quantized for word in never)
    if name == "detector_boxes":
        assert all(any(word in path for path in left) for word in never)
        assert {"masks.upsampling_0", "masks.skip_convolutions.1"} <= quantized
        assert "geometry.encoder.boxes_direct_project" in left
        assert "encoder.layers.0.self_attn.k_proj" in quantized
    if name == "vision":
        assert {"levels.0.proj2", "levels.2.proj1", "layers.1.mlp.fc2"} <= quantized
        operators = [one.pair.operator for one in calibrated.smoothings]
        assert (operators.count("layer_norm"), operators.count("linear")) == (4, 2)
        assert {"levels.0.proj1", "levels.2.proj1"} <= {
            one.pair.writer for one in calibrated.smoothings
        }
    # What is left with a weight of its own: patches, heads, coordinates.
    weighted = sum(one.share for one in calibrated.left if one.operator != "matmul")
    assert weighted < 0.12


def test_fused_graphs_are_quantized_alike(
    exported_file: Callable[[str], Path], example: Callable[..., Any]
) -> None:
    program = exported_from_file(exported_file("vision"))
    fused = fuse(program, target="onnxruntime").program
    sample = example("vision", {"batch": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        plain, merged = (
            calibrate(one, lambda: iter([sample]), part="vision", settings=Quantization())
            for one in (program, fused)
        )
    paths = [site.path for site in merged.sites]
    assert "layers.0.attention.qkv_proj" in paths
    assert not any(path.endswith("q_proj") for path in paths)
    assert merged.groups == plain.groups
    assert merged.products == plain.products
    # All stays smoothable with windows kept in order, and gives the same factors.
    for one, other in zip(plain.smoothings, merged.smoothings, strict=True):
        assert one.pair.writer.replace("v_proj", "qkv_proj") == other.pair.writer
        width = len(one.factors)  # values are the last third of a merged projection
        assert torch.equal(one.factors, other.factors[-width:])
    quantized = program_from_calibrated(merged)
    for exact, rounded in zip(_run(program, sample), _run(quantized, sample), strict=True):
        assert _sqnr_db(exact, rounded) > 20


def test_dinov3_is_quantized_by_the_same_rules() -> None:
    from samforge.models.dinov3.loading import checkpoint_from_name

    backbone = checkpoint_from_name("dinov3-tiny", random_weights=True)
    program = exported_from_part(
        backbone.part("backbone"), backbone.inputs("backbone", TRACED_SIZES, seed=0)
    )
    sample = backbone.inputs("backbone", {"batch": 1}, seed=1)
    calibrated = calibrate(
        program, lambda: iter([sample]), part="backbone", settings=Quantization()
    )
    layer = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
    gated = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    paths = [site.path for site in calibrated.sites]
    assert paths == [f"layers.{i}.{name}" for i in range(2) for name in (*layer, *gated)]
    # The gate goes through SiLU, which ends a pair.
    written = ("norm1", "attention.v_proj", "norm2", "mlp.up_proj")
    assert [one.pair.writer for one in calibrated.smoothings] == [
        f"layers.{i}.{name}" for i in range(2) for name in written
    ]
    assert {one.path for one in calibrated.left} == {
        "patch_embeddings",
        "layers.0.attention",
        "layers.1.attention",
    }
