"""Lowering: every small module against float32, and whole parts against the programs they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from samforge.core.errors import SettingError
from samforge.core.session import TensorSpec
from samforge.transform.export import exported_from_file
from samforge.transform.fuse import fuse
from samforge.transform.lower import (
    Lowering,
    fp8_scales_from_samples,
    interface_dtype,
    lower,
)
from samforge.transform.lower.attention import Attention
from samforge.transform.lower.convolution import (
    PatchConvolution,
    ScatteredConvolution,
    TypedConvolution,
    folded_pointwise,
)
from samforge.transform.lower.gelu import fast_gelu
from samforge.transform.lower.gelu_kernels import gelu_half, gelu_to_e4m3
from samforge.transform.lower.linear import Fp8Linear, Fp8Mlp, fits_fp8, quantized
from samforge.transform.lower.normalization import TypedGroupNorm, TypedLayerNorm
from samforge.transform.lower.streamed_attention import attend, suits_streaming

F32, BF16 = torch.float32, torch.bfloat16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference in the 2-norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_fast_gelu_is_gelu_to_three_hundred_thousandths() -> None:
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).float()
    assert (fast_gelu(x) - F.gelu(x.double())).abs().max() < 2.6e-5
    far = fast_gelu(torch.tensor([0.0, 40.0, -40.0]))
    assert far.tolist() == pytest.approx([0, 40, 0], abs=1e-7)


def test_gelu_in_half_rounds_once() -> None:
    x = (drawn(64, 48) * 3).to(BF16)
    assert torch.equal(gelu_half(x), fast_gelu(x.float()).to(BF16))


def test_e4m3_saturates() -> None:
    found = quantized(torch.tensor([1.0, 1000.0, -1e9, 0.3]), 1.0).float()
    assert found.tolist() == [1.0, 448.0, -448.0, 0.3125]


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 32), (32, 96)])
def test_an_fp8_linear_is_near(per: str, outputs: int, inputs: int) -> None:
    x, weight, bias = drawn(3, 5, inputs), drawn(outputs, inputs, seed=1), drawn(outputs, seed=2)
    layer = Fp8Linear(weight, bias, float(x.abs().max()) / 448, BF16, per)
    found = layer(x)
    assert found.dtype == BF16
    assert found.shape == (3, 5, outputs)
    assert error(found, F.linear(x, weight, bias)) < 0.04  # two operands of 3 bits of mantissa


def test_an_fp8_linear_is_exact_on_what_e4m3_holds() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 448.0] * 4])
    weight = torch.full((16, 16), 448.0)
    assert Fp8Linear(weight, None, 1.0, F32, "channel")(x).tolist() == [[448.0 * 4 * 447.5] * 16]


def test_a_scale_a_channel_saves_small_channels() -> None:
    weight = drawn(32, 64, seed=1)
    weight[::2] *= 1e-5
    x = drawn(16, 64)
    wanted = F.linear(x, weight)[:, ::2]
    errors = {
        per: error(Fp8Linear(weight, None, 0.01, BF16, per)(x)[:, ::2], wanted)
        for per in ("channel", "tensor")
    }
    assert errors["channel"] < 0.04
    assert errors["tensor"] > 0.3


def test_an_fp8_mlp_is_its_two_linears_with_gelu_between() -> None:
    x = drawn(2, 7, 32)
    first = Fp8Linear(drawn(64, 32, seed=1) / 5, drawn(64, seed=2), 0.01, BF16, "channel")
    second = Fp8Linear(drawn(32, 64, seed=3) / 8, drawn(32, seed=4), 0.01, BF16, "channel")
    apart = second(F.gelu(first(x).float()))
    assert error(Fp8Mlp(first, second)(x), apart) < 0.02
    scale, bias = torch.ones(64), torch.zeros(64)
    found = gelu_to_e4m3(drawn(9, 64).to(BF16), scale, bias, torch.tensor([100.0]))
    wanted = F.gelu(drawn(9, 64).to(BF16).float()) * 100
    assert (found.float() - wanted).abs().max() <= wanted.abs().max() / 16


def test_fp8_wants_multiples_of_sixteen() -> None:
    assert fits_fp8(torch.zeros(32, 16))
    assert not fits_fp8(torch.zeros(30, 16))
    assert not fits_fp8(torch.zeros(16, 16, 1))


def test_a_patch_convolution_is_the_convolution() -> None:
    x, weight, bias = drawn(2, 3, 28, 42), drawn(8, 3, 14, 14, seed=1), drawn(8, seed=2)
    found = PatchConvolution(weight, bias, F32)(x)
    assert error(found, F.conv2d(x, weight, bias, stride=14)) < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_scattered_convolution_is_the_transposed_one() -> None:
    x, weight, bias = drawn(2, 8, 5, 4), drawn(8, 6, 2, 2, seed=1), drawn(6, seed=2)
    found = ScatteredConvolution(weight, bias, F32)(x)
    assert error(found, F.conv_transpose2d(x, weight, bias, stride=2)) < 1e-6


def test_a_pointwise_convolution_folds_into_the_transposed_one_before_it() -> None:
    x, first, bias = drawn(1, 8, 5, 4), drawn(8, 6, 2, 2, seed=1), drawn(6, seed=2)
    second, shift = drawn(7, 6, 1, 1, seed=3), drawn(7, seed=4)
    wanted = F.conv2d(F.conv_transpose2d(x, first, bias, stride=2), second, shift)
    weight, both = folded_pointwise((first, bias), (second, shift))
    assert error(F.conv_transpose2d(x, weight, both, stride=2), wanted) < 1e-6


def test_other_convolutions_keep_their_settings() -> None:
    x, weight = drawn(2, 8, 9, 9), drawn(8, 8, 3, 3, seed=1)
    layer = TypedConvolution(weight, None, F32, False, stride=(2, 2), padding=(1, 1))
    assert error(layer(x), F.conv2d(x, weight, stride=2, padding=1)) < 1e-6
    spread = TypedConvolution(weight, None, F32, True, stride=(2, 2), padding=(1, 1))
    assert error(spread(x), F.conv_transpose2d(x, weight, stride=2, padding=1)) < 1e-6


def test_norms_are_float32_inside() -> None:
    x = drawn(2, 16, 6, 7) * 3 + 2
    weight, bias = drawn(16, seed=1), drawn(16, seed=2)
    found = TypedGroupNorm(4, weight, bias, 1e-5, F32)(x)
    assert error(found, F.group_norm(x, 4, weight, bias, 1e-5)) < 1e-6
    ending_in_relu = TypedGroupNorm(4, weight, bias, 1e-5, F32)
    ending_in_relu.relu = True
    assert error(ending_in_relu(x), F.group_norm(x, 4, weight, bias, 1e-5).relu()) < 1e-6
    row = (drawn(5, 16) * 300).to(BF16)
    wanted = F.layer_norm(row.float(), (16,), weight, bias, 1e-6)
    assert torch.equal(TypedLayerNorm((16,), weight, bias, 1e-6, BF16)(row), wanted.to(BF16))


@pytest.mark.parametrize("kernel", ["auto", "explicit", "triton"])
def test_every_attention_attends(kernel: str) -> None:
    q, k, v = (drawn(2, 3, 17, 32, seed=seed) for seed in range(3))
    wanted = F.scaled_dot_product_attention(q, k, v, scale=0.2)
    assert error(Attention(F32, kernel, 0.2, False)(q, k, v), wanted) < 1e-6
    mask = drawn(2, 1, 17, 17, seed=4)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert error(Attention(F32, kernel, None, False)(q, k, v, mask), wanted) < 1e-6
    assert attend(q, k, v, 0.2).is_contiguous()


@pytest.mark.parametrize(
    ("tokens", "size", "streamed"),
    [(5184, 64, True), (1029, 64, False), (5184, 32, True), (201, 32, True), (576, 128, False)],
)
def test_the_fastest_kernel_depends_on_the_shape(tokens: int, size: int, streamed: bool) -> None:
    q = torch.empty(1, 8, tokens, size)
    assert suits_streaming(q, q) is streamed


@pytest.fixture(scope="module")
def lowered(
    exported_file: Callable[[str], Path],
    part: Callable[..., Any],
    example: Callable[..., Any],
) -> Callable[..., Any]:
    """Runs a part of the small model before and after lowering."""

    def run(name: str, settings: Lowering, calibrated: bool = False) -> Any:
        spec = part(name).spec
        inputs = example(name, {"batch": 2, "prompts": 2, "boxes": 3}, seed=3)
        program = fuse(exported_from_file(exported_file(name)), target="inductor").program
        with torch.no_grad():
            wanted = program.module()(*inputs.values())
        if calibrated:
            scales = fp8_scales_from_samples(program, spec, [inputs])
            settings = Lowering(precision="fp8", scales=scales)
        made = lower(program, spec, settings=settings)
        placed = [
            tensor.to(interface_dtype(one, settings))
            for one, tensor in zip(spec.inputs, inputs.values(), strict=True)
        ]
        with torch.no_grad():
            found = made.program.module(check_guards=False)(*placed)
        return wanted, found, made.layers

    return run


def test_in_float32_nothing_changes_but_gelu(lowered: Callable[..., Any]) -> None:
    wanted, found, layers = lowered("vision", Lowering(precision="fp32", gelu="exact"))
    assert max(error(*pair) for pair in zip(found, wanted, strict=True)) < 1e-5
    assert {form for _, form in layers} == {"fp32"}


def test_bf16_is_near_and_gives_the_interface_types(lowered: Callable[..., Any]) -> None:
    wanted, found, layers = lowered("vision", Lowering())
    assert max(error(*pair) for pair in zip(found, wanted, strict=True)) < 0.02
    assert {tensor.dtype for tensor in found} == {F32}
    assert {form for _, form in layers} == {"bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["explicit", "sdpa"])
def test_a_position_bias_either_way(lowered: Callable[..., Any], way: str) -> None:
    settings = Lowering(precision="fp32", gelu="exact", position_bias=way)
    wanted, found, _ = lowered("detector_boxes", settings)
    assert max(error(*pair) for pair in zip(found, wanted, strict=True)) < 1e-4


def test_fp8_takes_the_large_linears_only(lowered: Callable[..., Any]) -> None:
    wanted, found, layers = lowered("vision", Lowering(), calibrated=True)
    assert max(error(*pair) for pair in zip(found, wanted, strict=True)) < 0.15
    formats = dict(layers)
    assert {path for path, form in formats.items() if form == "fp8"} == {
        f"layers.{layer}.{name}"
        for layer in range(2)
        for name in ("attention.qkv_proj", "mlp.fc1", "mlp.fc2")
    } - {path for path, form in formats.items() if form == "bf16"}
    assert any(form == "fp8" for form in formats.values())
    assert not any(path.endswith("o_proj") for path, form in layers if form == "fp8")


@pytest.mark.slow
def test_every_constant_moves_to_the_device(
    part: Callable[..., Any], exported_file: Callable[[str], Path]
) -> None:
    # The boxes' encoder holds a tensor that it made while it was traced, which is no buffer.
    program = fuse(exported_from_file(exported_file("detector_boxes")), target="inductor").program
    spec = part("detector_boxes").spec
    moved = lower(program, spec, settings=Lowering(), device="meta").program
    constants = [*moved.state_dict.values(), *moved.constants.values()]
    assert {str(tensor.device) for tensor in constants} == {"meta"}


def test_calibration_sees_what_linears_read() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x) * 0 - 7.0)

    from samforge.core.session import PartSpec

    one = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    program = torch.export.export(Two().eval(), (torch.zeros(2, 4),), strict=False)
    samples = [{"x": torch.tensor([[1.0, -44.8, 0, 0], [0, 0, 0, 3.0]])}]
    spec = PartSpec(name="two", inputs=(one,), outputs=(one,))
    scales = fp8_scales_from_samples(program, spec, samples)
    assert scales == {
        "first": pytest.approx(0.1, rel=1e-6),
        "second": pytest.approx(7 / 448, rel=1e-6),
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("precision", "int8"),
        ("residual", "bf16"),
        ("attention", "xformers"),
        ("gelu", "tanh"),
        ("position_bias", "no"),
    ],
)
def test_settings_outside_the_list(setting: str, value: str) -> None:
    with pytest.raises(SettingError, match=rf"lowering\.{setting} is '{value}'\. Allowed: '"):
        Lowering(**{setting: value})


def test_sensitive_layers_stay_float32() -> None:
    settings = Lowering(
        precision="fp8", scales={"layers.0.mlp.fc1": 1.0, "decoder.box_head.l": 1.0}
    )
    assert settings.linear_precision("layers.0.mlp.fc1") == "fp8"
    assert settings.linear_precision("layers.0.mlp.fc2") == "half"  # no scale for it
    assert settings.wants_quantized("layers.0.attention.o_proj")
    assert settings.linear_precision("decoder.decoder.box_head.layer1") == "fp32"


def test_features_pass_in_half_and_scores_do_not() -> None:
    settings = Lowering(half_features=True)
    tensors = {
        name: TensorSpec(name=name, dtype=dtype, shape=(1,))
        for name, dtype in (("fpn_0", "float32"), ("pred_logits", "float32"), ("ids", "int64"))
    }
    found = {name: interface_dtype(tensor, settings) for name, tensor in tensors.items()}
    assert found == {"fpn_0": BF16, "pred_logits": F32, "ids": torch.int64}
    assert interface_dtype(tensors["fpn_0"], Lowering()) == F32
