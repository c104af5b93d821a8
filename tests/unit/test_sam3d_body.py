"""The backbone's place in SAM 3D Body, shown on a stand-in with upstream's interfaces.

Own code, none of upstream's: the names, shapes and calls are its, the sizes are tiny, and the body
model is samforge's figure of capsules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samforge.core.errors import (
    CheckpointError,
    FidelityError,
    PromptError,
    SettingError,
    ShapeError,
)
from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec, TensorSpec, checked_tensors
from samforge.draw import demo_figure
from samforge.integrations.person_crop import crop_from_box, default_camera, warp
from samforge.integrations.sam3d_body import (
    SessionBackbone,
    load_upstream,
    people_from_image,
    replace_backbone,
)
from samforge.measure import compare_meshes, mesh_from_file, save_people
from samforge.models.dinov3.loading import checkpoint_from_name

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, WIDTH = 64, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class PartSession:
    """A part in eager mode as a session, optionally less exact, for a fixed batch, or broken."""

    part: Any
    noise: float = 0.0
    fixed: int | None = None
    broken: bool = False
    batches: list[int] = field(default_factory=list)
    runtime: str = "torch"
    processor: str = "CPU"

    @property
    def spec(self) -> PartSpec:
        if self.fixed is None:
            return self.part.spec  # type: ignore[no-any-return]
        inputs, outputs = (
            tuple(
                TensorSpec(name=t.name, dtype=t.dtype, shape=(self.fixed, *t.shape[1:])) for t in ts
            )
            for ts in (self.part.spec.inputs, self.part.spec.outputs)
        )
        return PartSpec(name=self.part.spec.name, inputs=inputs, outputs=outputs)

    def run(self, tensors: Any) -> Any:
        images = checked_tensors(self.spec, tensors)["images"]
        self.batches.append(len(images))
        found = self.part({"images": torch.from_numpy(images)})["features"].numpy().copy()
        found += np.random.default_rng(0).normal(0, self.noise, found.shape[1:]).astype(np.float32)
        if self.broken:
            found[0, 0, 0, 0] = np.nan
        return {"features": found}

    def close(self) -> None:
        pass


class OwnBackbone(nn.Module):
    """What upstream has before the swap: the same function, called in its own way."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part
        self.embed_dim = self.embed_dims = WIDTH
        self.patch_size = 16

    def forward(self, x: Any, extra_embed: Any = None) -> Any:
        assert extra_embed is None
        return self.part({"images": x})["features"]


class BodyModel(nn.Module):
    """A few numbers -> vertices of a fixed topology: the figure, bent by ten modes."""

    def __init__(self) -> None:
        super().__init__()
        figure = demo_figure(8, 9)
        rng = np.random.default_rng(0)
        labels = np.eye(len(figure.names))[figure.labels]  # [V, R]
        modes = np.einsum("vr,rmc->mvc", labels, rng.normal(0, 0.05, (labels.shape[1], 10, 3)))
        self.register_buffer("rest", torch.tensor(figure.vertices, dtype=torch.float32))
        self.register_buffer("modes", torch.tensor(modes, dtype=torch.float32))
        self.register_buffer("faces", torch.tensor(figure.faces))
        self.register_buffer("keypoints", torch.tensor(figure.keypoints, dtype=torch.float32))

    def forward(self, pose: Any) -> Any:
        return self.rest + torch.einsum("bm,mvc->bvc", pose, self.modes)


class StandIn(nn.Module):
    """The names of ``SAM3DBody`` that the swap and the estimator touch."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(MODEL=SimpleNamespace(IMAGE_SIZE=[SIZE, SIZE]))
        self.backbone = backbone
        self.backbone_dtype = torch.bfloat16
        generator = torch.Generator().manual_seed(0)
        self.decoder = nn.Linear(self.backbone.embed_dims, 13)  # type: ignore[arg-type]
        self.decoder.weight.data.normal_(0, 0.3, generator=generator)
        self.decoder.bias.data.zero_()
        self.head_pose = BodyModel()

    def encode(self, images: Any) -> Any:
        found = self.backbone(images.type(self.backbone_dtype), extra_embed=None)
        if isinstance(found, tuple):
            found = found[-1]
        return found.type(images.dtype)

    def run_inference(self, body: Any, hands: list[Any], inference_type: str) -> Any:
        found = self.decoder(self.encode(body).mean(dim=(2, 3)))
        pose, camera = found[:, :10], found[:, 10:] * 0.01
        if inference_type == "full":
            left, right = (self.decoder(self.encode(hand).mean(dim=(2, 3))) for hand in hands)
            pose = pose + 0.1 * (left - right)[:, :10]
        vertices = self.head_pose(pose)
        return vertices, camera + torch.tensor([0.0, 0.0, 3.0])


class Estimator:
    """The call of ``SAM3DBodyEstimator`` that users make."""

    def __init__(self, model: StandIn) -> None:
        self.model = model
        self.faces = model.head_pose.faces.numpy()  # type: ignore[operator]

    @torch.no_grad()
    def process_one_image(
        self, img: Any, bboxes: Any = None, inference_type: str = "full"
    ) -> list[dict[str, Any]]:
        height, width = img.shape[:2]
        boxes = np.array([[0, 0, width, height]]) if bboxes is None else bboxes
        body = self._crops(img, boxes)
        hands = [self._crops(img, boxes).flip(3), self._crops(img, boxes)]
        vertices, camera = self.model.run_inference(body, hands, inference_type)
        focal = default_camera((height, width)).focal_px
        return [
            {
                "pred_vertices": vertices[index].numpy(),
                "pred_cam_t": camera[index].numpy(),
                "pred_keypoints_3d": self.model.head_pose.keypoints.numpy(),  # type: ignore[operator]
                "focal_length": focal,
            }
            for index in range(len(boxes))
        ]

    def _crops(self, img: Any, boxes: Any) -> Any:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        crops = []
        for box in boxes:
            crop = warp(img, crop_from_box(box, img.shape[:2], size=SIZE))
            crops.append((torch.from_numpy(crop).permute(2, 0, 1) / 255 - mean) / std)
        return torch.stack(crops)


@pytest.fixture(scope="module")
def part(one_thread: None) -> Any:
    return checkpoint_from_name("dinov3-tiny", random_weights=True).part("backbone")


@pytest.fixture
def estimator(part: Any) -> Estimator:
    model = StandIn(OwnBackbone(part)).eval()
    model.backbone_dtype = torch.float32
    return Estimator(model)


PHOTO = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
BOXES = [(10, 10, 60, 100), (80, 20, 130, 110), (-10, 0, 40, 90)]


@pytest.mark.parametrize("inference_type", ["body", "full"])
def test_the_mesh_stays_the_same(estimator: Estimator, part: Any, inference_type: str) -> None:
    before = people_from_image(estimator, PHOTO, BOXES, inference_type=inference_type)
    session = PartSession(part)
    backbone = replace_backbone(estimator.model, session)
    after = people_from_image(estimator, PHOTO, BOXES, inference_type=inference_type)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one["pred_vertices"] - other["pred_vertices"]).max() < 1e-6
        assert np.abs(one["pred_cam_t"] - other["pred_cam_t"]).max() < 1e-6
    # Persons differ, and the hands count: nothing is compared with itself.
    assert np.abs(before[0]["pred_vertices"] - before[1]["pred_vertices"]).max() > 1e-3
    calls = {"body": 1, "full": 3}[inference_type]
    assert (backbone.calls, backbone.images) == (calls, calls * 3)
    assert session.batches == [3] * calls
    assert estimator.model.backbone is backbone
    assert estimator.model.backbone_dtype is torch.float32


def test_full_differs_from_body(estimator: Estimator) -> None:
    body, full = (
        people_from_image(estimator, PHOTO, BOXES, inference_type=kind)[0]["pred_vertices"]
        for kind in ("body", "full")
    )
    assert np.abs(body - full).max() > 1e-4


def test_a_less_exact_session_moves_the_mesh_by_millimetres(
    estimator: Estimator, part: Any, tmp_path: Path
) -> None:
    files = []
    for name, noise in (("fp32", 0.0), ("int8", 0.01)):
        replace_backbone(estimator.model, PartSession(part, noise=noise))
        people = people_from_image(estimator, PHOTO, BOXES[:1], inference_type="body")
        files.append(save_people(tmp_path / f"{name}.npz", people, estimator.faces))
    found = compare_meshes(*(mesh_from_file(file) for file in files))
    assert 0.01 < found.root_relative.mean < 10
    assert found.root_relative.max >= found.root_relative.p95 >= found.root_relative.median
    assert found.camera_space is not None
    assert found.camera_space.mean > 0


def test_a_tuple_is_what_some_expect(estimator: Estimator, part: Any) -> None:
    session = PartSession(part)
    images = torch.zeros(2, 3, SIZE, SIZE)
    (found,) = SessionBackbone(session, as_tuple=True)(images)
    assert torch.equal(found, SessionBackbone(session)(images))
    replace_backbone(estimator.model, session, as_tuple=True)
    assert len(people_from_image(estimator, PHOTO, BOXES)) == 3


def test_it_has_what_upstream_reads(part: Any) -> None:
    backbone = SessionBackbone(PartSession(part))
    assert (backbone.embed_dim, backbone.embed_dims, backbone.patch_size) == (64, 64, 16)
    assert (backbone.dtype, backbone.image_size) == (torch.float32, 64)
    assert list(backbone.parameters()) == []
    # What upstream's half-precision switch does to a DINOv3 backbone does no harm.
    backbone.encoder.apply(lambda module: module)
    backbone.encoder.rope_embed = backbone.encoder.rope_embed.to(torch.bfloat16)
    assert backbone(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, WIDTH, 4, 4)


def test_it_keeps_the_callers_type(part: Any) -> None:
    found = SessionBackbone(PartSession(part))(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bfloat16))
    assert found.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("options", "batches"), [({"max_batch": 2}, [2, 2, 1]), ({"max_batch": 9}, [5]), ({}, [5])]
)
def test_persons_are_batched_within_bounds(part: Any, options: Any, batches: list[int]) -> None:
    session = PartSession(part)
    images = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = SessionBackbone(session, **options)(images)
    assert session.batches == batches
    assert (found - part({"images": images})["features"]).abs().max() < 1e-5


def test_an_engine_of_a_fixed_batch_is_filled_up(part: Any) -> None:
    session = PartSession(part, fixed=2)
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = SessionBackbone(session)(images)
    assert session.batches == [2, 2]
    assert found.shape[0] == 3
    assert (found - part({"images": images})["features"]).abs().max() < 1e-5


def test_nan_features_stop_the_pipeline(estimator: Estimator, part: Any) -> None:
    replace_backbone(estimator.model, PartSession(part, broken=True))
    with pytest.raises(FidelityError, match="1 of 3072 values of the backbone's features are NaN"):
        people_from_image(estimator, PHOTO, BOXES)


def test_what_the_wrapper_refuses(part: Any) -> None:
    backbone = SessionBackbone(PartSession(part))
    with pytest.raises(SettingError, match="takes no extra embedding"):
        backbone(torch.zeros(1, 3, SIZE, SIZE), extra_embed=torch.zeros(1))
    with pytest.raises(ShapeError, match=r"backbone wants images of shape \(1, 3, 64, 64\)"):
        backbone(torch.zeros(1, 3, SIZE, SIZE + 16))
    with pytest.raises(SettingError, match="max_batch is 0"):
        SessionBackbone(PartSession(part), max_batch=0)
    vision = PartSession(part)
    other = PartSpec(name="vision", inputs=part.spec.inputs, outputs=part.spec.outputs[:0])
    vision.part = SimpleNamespace(spec=other)
    with pytest.raises(ShapeError, match="wants the part backbone"):
        SessionBackbone(vision)


def test_a_session_that_does_not_fit_the_model(estimator: Estimator, part: Any) -> None:
    model = estimator.model
    model.backbone.embed_dim = 1280
    with pytest.raises(ShapeError, match="The model's backbone has embed_dim 1280, the session's"):
        replace_backbone(model, PartSession(part))
    model.backbone.embed_dim = WIDTH
    model.cfg.MODEL.IMAGE_SIZE = (512, 512)
    with pytest.raises(ShapeError, match=r"crops persons to \(512, 512\) pixels, the session was"):
        replace_backbone(model, PartSession(part))
    with pytest.raises(SettingError, match="Linear has no backbone to replace"):
        replace_backbone(nn.Linear(1, 1), PartSession(part))


def test_boxes_are_checked_before_anything_runs(estimator: Estimator, part: Any) -> None:
    session = PartSession(part)
    replace_backbone(estimator.model, session)
    with pytest.raises(PromptError, match="has no area"):
        people_from_image(estimator, PHOTO, [BOXES[0], (5, 5, 5, 9)])
    with pytest.raises(PromptError, match="lies outside the image of 160 x 120"):
        people_from_image(estimator, PHOTO, [(200, 10, 220, 40)])
    with pytest.raises(SettingError, match=r"no inference type 'feet'\. Types: full, body, hand"):
        people_from_image(estimator, PHOTO, BOXES, inference_type="feet")
    assert session.batches == []


def test_the_crop_is_what_the_bundle_says(part: Any) -> None:
    image = checkpoint_from_name("dinov3-tiny", random_weights=True).image
    assert image == ImageSpec(size=SIZE, mean=MEAN, std=STD)


UPSTREAM = {
    "__init__.py": "",
    "models/__init__.py": "",
    "models/meta_arch/__init__.py": "from .sam3d_body import SAM3DBody",
    "models/backbones.py": (
        "def create_backbone(name, cfg=None):\n    raise RuntimeError('torch.hub was asked')\n"
    ),
    "models/meta_arch/sam3d_body.py": """
from torch import nn
from ..backbones import create_backbone

class SAM3DBody(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.backbone = create_backbone(cfg.MODEL.BACKBONE.TYPE, cfg)
        self.decoder = nn.Linear(self.backbone.embed_dims, 3)
""",
    "build_models.py": """
from types import SimpleNamespace
from .models.meta_arch import SAM3DBody

def load_sam_3d_body(checkpoint_path="", device="cuda", mhr_path=""):
    backbone = SimpleNamespace(TYPE="dinov3_vith16plus")
    cfg = SimpleNamespace(MODEL=SimpleNamespace(IMAGE_SIZE=[64, 64], BACKBONE=backbone))
    return SAM3DBody(cfg).to(device).eval(), cfg
""",
}
"""A checkout as far as its loader goes, with a backbone that needs the network."""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    for name, text in UPSTREAM.items():
        file = tmp_path / "upstream" / "sam_3d_body" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("model.ckpt", "mhr_model.pt"):
        (tmp_path / name).touch()
    yield tmp_path / "upstream"
    for name in [name for name in sys.modules if name.partition(".")[0] == "sam_3d_body"]:
        del sys.modules[name]


def load(checkout: Path, session: Any, **changes: Any) -> Any:
    places = {
        "checkpoint": checkout.parent / "model.ckpt",
        "mhr_model": checkout.parent / "mhr_model.pt",
    }
    return load_upstream(checkout, session=session, **(places | changes))


def test_upstream_loads_without_its_backbone(checkout: Path, part: Any) -> None:
    path = list(sys.path)
    model, config = load(checkout, PartSession(part))
    assert isinstance(model.backbone, SessionBackbone)
    assert model.backbone_dtype is torch.float32
    assert model.decoder.in_features == WIDTH
    assert config.MODEL.BACKBONE.TYPE == "dinov3_vith16plus"
    # Nothing of upstream stays changed.
    factory = sys.modules["sam_3d_body.models.meta_arch.sam3d_body"].create_backbone  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"torch\.hub was asked"):
        factory("dinov3_vith16plus")
    assert sys.path == path


def test_what_loading_refuses(checkout: Path, part: Any, tmp_path: Path) -> None:
    session = PartSession(part)
    with pytest.raises(CheckpointError, match=r"gone\.ckpt does not exist"):
        load(checkout, session, checkpoint=tmp_path / "gone.ckpt")
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"checkpoint": tmp_path / "model.ckpt", "mhr_model": tmp_path / "mhr_model.pt"}
    with pytest.raises(CheckpointError, match=r"has no package sam_3d_body\. Clone https://github"):
        load_upstream(empty, session=session, **places)


def test_a_checkout_that_cannot_be_imported(checkout: Path, part: Any) -> None:
    (checkout / "sam_3d_body/build_models.py").write_text("import no_such_package_of_ours")
    with pytest.raises(CheckpointError, match="cannot be imported: No module named 'no_such_packa"):
        load(checkout, PartSession(part))


def test_another_version_of_upstream(checkout: Path, part: Any) -> None:
    file = checkout / "sam_3d_body/models/meta_arch/sam3d_body.py"
    file.write_text(file.read_text().replace("create_backbone", "make_backbone"))
    backbones = checkout / "sam_3d_body/models/backbones.py"
    backbones.write_text(backbones.read_text().replace("create_backbone", "make_backbone"))
    with pytest.raises(CheckpointError, match="has no create_backbone: this is another version"):
        load(checkout, PartSession(part))
