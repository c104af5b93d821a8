"""Recipes: defaults, what they refuse, and TOML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from samforge.core.errors import SettingError
from samforge.core.recipe import Calibration, Gates, Recipe
from samforge.core.strict_json import strict_json


def test_defaults_build_the_tiny_model_for_onnxruntime() -> None:
    assert Recipe().to_dict() == {
        "model": "tiny",
        "reference": "meta",
        "image_size": None,
        "parts": None,
        "tracker": False,
        "target": "onnxruntime",
        "precision": "fp32",
        "random_weights": False,
        "seed": 0,
        "tokenizer": None,
        "calibration": {"source": None, "samples": 16, "prompts": [], "seed": 0},
        "quantization": {
            "observer": "min-max",
            "smooth": True,
            "smooth_alpha": 0.5,
            "smooth_skip": [],
            "skip": [],
            "skip_operators": [],
            "patch_embedding": False,
            "mixed": True,
            "max_kept": 0.25,
        },
        "compute_capabilities": [],
        "engine": {
            "batch": 4,
            "prompts": 8,
            "boxes": 16,
            "workspace_gib": None,
            "optimization_level": None,
            "timing_cache": None,
        },
        "gates": {
            "export_max_abs": 0.0,
            "fuse_max_abs": 1e-5,
            "onnx_max_abs": 1e-4,
            "mask_iou": None,
            "agreement": 0.95,
            "box_iou": None,
            "score_shift": None,
            "absent_score_shift": None,
            "logit_shift": None,
            "presence_shift": None,
            "cgf1_alike": None,
            "cgf1_drop": 0.01,
            "odd_logit_shift": None,
            "odd_cosine": None,
            "feature_cosine": None,
            "channel_gain": None,
            "click_iou": None,
            "track_iou": None,
            "j_and_f_drop": 0.01,
            "switch_rise": 0.02,
            "weak_evidence": False,
        },
    }


def test_toml_fills_every_field(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'model = "facebook/sam3"\nimage_size = 1008\nparts = ["vision", "text"]\n'
        'target = "torch"\nprecision = "fp32"\nrandom_weights = true\nseed = 7\n'
        'tokenizer = "clip/tokenizer.json"\n[gates]\nonnx_max_abs = 1\n'
    )
    recipe = Recipe.from_toml(path)
    assert recipe == Recipe(
        model="facebook/sam3",
        image_size=1008,
        parts=("vision", "text"),
        target="torch",
        random_weights=True,
        seed=7,
        tokenizer=tmp_path / "clip/tokenizer.json",
        gates=Gates(onnx_max_abs=1.0),
    )
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "imagesize = 644",
            "unknown: 'imagesize' (did you mean 'image_size'?); allowed are calibration,",
        ),
        ("qqq = 1\ntarge = 1", "'qqq', 'targe' (did you mean 'target'?)"),
        ("[gates]\nonnx_max = 1", "gates has keys that are unknown: 'onnx_max' (did you mean"),
        ('image_size = "644"', "image_size wants a whole number, got '644'."),
        ("seed = true", "seed wants a whole number, got True."),
        (f"seed = {2**63}", "seed wants a whole number below 2^63, got one of 64 bits."),
        (f"[calibration]\nseed = {2**63}", "calibration.seed wants a whole number below 2^63"),
        ("[calibration]\nseed = -1", "calibration.seed wants a whole number from 0 up, got -1."),
        (f"[calibration]\nsamples = {2**63}", "calibration.samples wants a whole number below"),
        (f"[engine]\nbatch = {2**63}", "engine.batch wants a whole number below 2^63"),
        (f"[engine]\noptimization_level = {2**63}", "engine.optimization_level wants a whole"),
        ("random_weights = 1", "random_weights wants true or false, got 1."),
        ('precision = "bf16"', "onnxruntime takes fp32, fp16, int8, fp8, int8-weights, not bf16."),
        ("[quantization]\nsmooth_alpha = 2", "quantization.smooth_alpha wants 0 to 1, got 2.0."),
        ('[quantization]\nobserver = "max"', "quantization.observer is unknown: 'max'"),
        ("[calibration]\nsamples = 0", "calibration.samples wants at least 1, got 0."),
        ("[engine]\nbatch = 0", "engine.batch wants at least 1, got 0."),
        ('parts = "vision"', "parts wants a list, got 'vision'."),
        ("[gates]\nonnx_max_abs = -1", "gates.onnx_max_abs wants a number from 0 up, got -1.0."),
        ("[gates]\nmask_iou = 1.5", "gates.mask_iou is 1.5, and nothing reaches more than 1"),
        ("[gates]\nbox_iou = 1.5", "gates.box_iou is 1.5, and nothing reaches more than 1"),
        ("[gates]\nscore_shift = -0.1", "gates.score_shift wants a number from 0 up, got -0.1."),
        ("[gates]\npresence_shift = 'no'", "gates.presence_shift wants a number"),
        ("[gates]\nweak_evidence = 1", "gates.weak_evidence wants true or false, got 1."),
        ("[gates]\nweak = true", "'weak'"),
        ("[gates]\nonnx_max_abs = nan", "gates.onnx_max_abs wants a number from 0 up, got nan."),
        ("model = ", "is not valid TOML"),
    ],
)
def test_toml_refuses(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        Recipe.from_toml(path)
    assert str(path) in str(caught.value)


def test_what_is_read_is_what_a_manifest_can_hold() -> None:
    """Else a build would end in an error hours later, when it publishes."""
    most = 2**63 - 1
    recipe = Recipe(seed=most, calibration=Calibration(seed=most, samples=most))
    read = strict_json(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(read) == recipe
    for digits in (20, 400):
        with pytest.raises(SettingError, match=r"image_size wants a whole number below 2\^63"):
            Recipe(image_size=10**digits)
        with pytest.raises(SettingError, match=r"^seed wants a whole number below 2\^63, got one"):
            Recipe(seed=10**digits)


def test_missing_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml cannot be read: No such file"):
        Recipe.from_toml(tmp_path / "none.toml")


def test_unknown_target_and_precision_say_what_is_allowed() -> None:
    with pytest.raises(SettingError, match=r"^target is unknown: 'onnx'.*onnxruntime, "):
        Recipe(target="onnx")
    with pytest.raises(SettingError, match=r"^precision is unknown: 'fp31' .*'fp32'.*allowed are"):
        Recipe(precision="fp31")


def test_image_sizes_are_positive_and_the_patch_is_the_models_to_say() -> None:
    assert Recipe(image_size=512).image_size == 512
    for size in (0, -28):
        with pytest.raises(SettingError) as caught:
            Recipe(image_size=size)
        assert str(caught.value) == f"image_size wants a positive number of pixels, got {size}."


def test_parts_are_names_and_each_once() -> None:
    with pytest.raises(SettingError, match=r"more than once: text, text"):
        Recipe(parts=("text", "text"))
    with pytest.raises(SettingError, match="at least one name"):
        Recipe(parts=())
