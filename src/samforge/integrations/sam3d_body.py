"""SAM 3D Body with samforge's backbone: a session takes the place of ``model.backbone``.

Upstream (github.com/facebookresearch/sam-3d-body, SAM License) is imported from the user's own
checkout. What it expects of a backbone was read off its source: ``forward(images, extra_embed)``,
``embed_dim``, ``embed_dims`` and ``patch_size``; it casts images to ``model.backbone_dtype`` and
takes the last of a tuple. Inference type "body" calls the backbone once with every person in one
batch, "full" three times: body, left hands (flipped) and right hands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from samforge.core.errors import CheckpointError, SettingError, ShapeError
from samforge.core.images import RgbImage
from samforge.core.session import Array, Session
from samforge.integrations.person_crop import crop_from_box
from samforge.runtime.features import check_finite

INFERENCE_TYPES = ("full", "body", "hand")
"""What upstream's ``process_one_image`` can be asked for."""
PACKAGE = "sam_3d_body"
_FACTORY_HOME = "sam_3d_body.models.meta_arch.sam3d_body"
_FACTORY = "create_backbone"


class SessionBackbone(nn.Module):
    """A session as the module that upstream expects; it has no weights and no gradient."""

    def __init__(
        self, session: Session, *, as_tuple: bool = False, max_batch: int | None = None
    ) -> None:
        """Keep the session.

        Args:
            session: Of the part ``backbone``.
            as_tuple: Return the features in a tuple, as some upstream backbones do.
            max_batch: Most images in one run, to bound memory; None runs all persons at once. A
                session built for a fixed batch gets that many, the last run filled up.

        Raises:
            ShapeError: The session runs another part.
            SettingError: ``max_batch`` is below 1.
        """
        super().__init__()
        spec = session.spec
        names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        if names != ["images", "features"]:
            raise ShapeError(
                f"SAM 3D Body wants the part backbone (images -> features), got {spec.name} with "
                f"{', '.join(names)}. Build it with: samforge build facebook/sam-3d-body-dinov3."
            )
        if max_batch is not None and max_batch < 1:
            raise SettingError(f"max_batch is {max_batch}. Give at least 1, or None.")
        images, features = spec.inputs[0].shape, spec.outputs[0].shape
        self.session = session
        self.as_tuple = as_tuple
        self.image_size = int(images[-1])
        self.embed_dim = self.embed_dims = int(features[1])
        self.patch_size = self.image_size // int(features[-1])
        self.dtype = torch.float32
        self.calls = 0
        """How often upstream called it."""
        self.images = 0
        """Images it encoded in these calls."""
        self._fixed_batch = images[0] if isinstance(images[0], int) else None
        self._step = self._fixed_batch or max_batch
        # Upstream's half-precision switch looks for a DINOv3 encoder with a rotary table.
        self.encoder = nn.Module()
        self.encoder.rope_embed = nn.Identity()

    def forward(self, images: Tensor, extra_embed: Tensor | None = None) -> Any:
        """Encode crops.

        Args:
            images: (B, 3, S, S), normalized, of any floating type and device.
            extra_embed: Must be None, as for upstream's own DINOv3.

        Returns:
            (B, D, S / 16, S / 16) of the images' type, on their device; in a tuple if asked for.

        Raises:
            SettingError: There is an extra embedding.
            ShapeError: The images have another size than the session was built for.
            FidelityError: A feature is no finite number.
        """
        if extra_embed is not None:
            raise SettingError(
                "The DINOv3 backbone takes no extra embedding; upstream's own refuses it too."
            )
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        found = self._run(array)
        check_finite(found, "the backbone's features", self.session.runtime)
        self.calls += 1
        self.images += len(array)
        features = torch.from_numpy(found).to(images.device, images.dtype)
        return (features,) if self.as_tuple else features

    def _run(self, array: Array) -> Array:
        count = len(array)
        step = self._step or max(1, count)
        parts = []
        for start in range(0, count, step):
            part = array[start : start + step]
            used = len(part)
            if self._fixed_batch is not None and used < self._fixed_batch:
                filler = np.zeros((self._fixed_batch - used, *part.shape[1:]), part.dtype)
                part = np.concatenate((part, filler))
            parts.append(self.session.run({"images": part})["features"][:used])
        # Own memory: a session may reuse its output's.
        return np.concatenate(parts).astype(np.float32)


def replace_backbone(
    model: nn.Module, session: Session, *, as_tuple: bool = False, max_batch: int | None = None
) -> SessionBackbone:
    """Put a session into an upstream model that is already there.

    The old backbone is dropped, and with it 3.2 GB of weights; ``model.backbone_dtype`` becomes
    float32, in which sessions take their images.

    Args:
        model: Upstream's ``SAM3DBody``.
        session: Of the part ``backbone``.
        as_tuple: As in :class:`SessionBackbone`.
        max_batch: As in :class:`SessionBackbone`.

    Returns:
        The new ``model.backbone``.

    Raises:
        SettingError: The model has no backbone.
        ShapeError: The session's width, patch or image size is not the model's.
    """
    old = getattr(model, "backbone", None)
    if old is None:
        raise SettingError(
            f"{type(model).__name__} has no backbone to replace. Give upstream's SAM3DBody: "
            "estimator.model, or what load_sam_3d_body returns."
        )
    new = SessionBackbone(session, as_tuple=as_tuple, max_batch=max_batch)
    for name in ("embed_dim", "patch_size"):
        wanted, found = getattr(old, name, None), getattr(new, name)
        if wanted is not None and wanted != found:
            raise ShapeError(
                f"The model's backbone has {name} {wanted}, the session's {found}: the decoder "
                "cannot read its features. Build the bundle from the checkpoint of this model."
            )
    _check_image_size(model, new.image_size)
    model.backbone = new
    model.backbone_dtype = new.dtype  # type: ignore[assignment]  # a plain attribute of upstream's
    return new


def load_upstream(
    checkout: Path,
    checkpoint: Path,
    session: Session,
    *,
    mhr_model: Path,
    device: str = "cpu",
) -> tuple[nn.Module, Any]:
    """Load SAM 3D Body from a checkout, with a session in place of its backbone from the start.

    Upstream builds its own backbone with ``torch.hub``, which downloads code and runs it. Here the
    factory of backbones hands out the session's module while upstream's loader runs: nothing is
    downloaded, and the backbone's 840 million parameters are never allocated.

    Args:
        checkout: The repository's folder, which holds ``sam_3d_body``.
        checkpoint: ``model.ckpt``, with ``model_config.yaml`` beside it.
        session: Of the part ``backbone``.
        mhr_model: Upstream's body model, ``assets/mhr_model.pt``.
        device: Where the decoder runs.

    Returns:
        Upstream's model in eval mode and its configuration, for ``SAM3DBodyEstimator``.

    Raises:
        CheckpointError: A file is missing, or the checkout is none.
        ShapeError: The session's image size is not the model's.
    """
    for path in (checkpoint, mhr_model):
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist. Download SAM 3D Body's checkpoint.")
    backbone = SessionBackbone(session)
    with _importable(checkout):
        home = _imported(_FACTORY_HOME, checkout)
        loader = _imported(f"{PACKAGE}.build_models", checkout)
        with _replaced(home, _FACTORY, lambda *_args, **_options: backbone):
            model, config = loader.load_sam_3d_body(
                checkpoint_path=str(checkpoint), device=device, mhr_path=str(mhr_model)
            )
    replace_backbone(model, session)
    return model, config


def people_from_image(
    estimator: Any,
    rgb: RgbImage,
    boxes_xyxy: Sequence[npt.ArrayLike] | npt.NDArray[np.floating] | None = None,
    *,
    inference_type: str = "full",
) -> list[Mapping[str, Any]]:
    """Run upstream's estimator on one image, after checking what it would crash or go wrong on.

    Args:
        estimator: Upstream's ``SAM3DBodyEstimator``.
        rgb: (H, W, 3), uint8, RGB.
        boxes_xyxy: (P, 4), one a person; None lets the estimator detect, or take the whole image.
        inference_type: ``full`` (three calls of the backbone) or ``body`` (one).

    Returns:
        One table a person: ``pred_vertices``, ``pred_cam_t``, ``pred_keypoints_3d``, …

    Raises:
        SettingError: An unknown inference type.
        PromptError: A box has no area or lies outside the image.
    """
    if inference_type not in INFERENCE_TYPES:
        raise SettingError(
            f"There is no inference type '{inference_type}'. Types: {', '.join(INFERENCE_TYPES)}."
        )
    options: dict[str, Any] = {}
    if boxes_xyxy is not None:
        for box in boxes_xyxy:
            crop_from_box(box, (rgb.shape[0], rgb.shape[1]))
        options["bboxes"] = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    people: list[Mapping[str, Any]] = estimator.process_one_image(
        rgb, inference_type=inference_type, **options
    )
    return people


def _check_image_size(model: nn.Module, size: int) -> None:
    """Compare with ``cfg.MODEL.IMAGE_SIZE`` where the model has one."""
    settings = getattr(getattr(model, "cfg", None), "MODEL", None)
    wanted = getattr(settings, "IMAGE_SIZE", None)
    if wanted is not None and set(np.atleast_1d(wanted).tolist()) != {size}:
        raise ShapeError(
            f"The model crops persons to {wanted} pixels, the session was built for {size}. "
            f"Build it with --image-size {np.atleast_1d(wanted)[0]}."
        )


@contextmanager
def _importable(checkout: Path) -> Iterator[None]:
    folder = str(checkout.resolve())
    if not (checkout / PACKAGE / "__init__.py").is_file():
        raise CheckpointError(
            f"{checkout} has no package {PACKAGE}. Clone "
            "https://github.com/facebookresearch/sam-3d-body and give its folder."
        )
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(name: str, checkout: Path) -> ModuleType:
    try:
        module = import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"{name} of {checkout} cannot be imported: {error}. Install what its INSTALL.md lists."
        ) from error
    home = Path(module.__file__ or "").resolve()
    if not home.is_relative_to(checkout.resolve()):
        raise CheckpointError(
            f"{name} was imported from {home} before, not from {checkout}. Start a new process."
        )
    return module


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Give a name of a module another value while the body runs."""
    if name not in vars(module):
        raise CheckpointError(
            f"{module.__name__} has no {name}: this is another version of upstream than samforge "
            "knows. Load it yourself and call replace_backbone(model, session)."
        )
    before = vars(module)[name]
    vars(module)[name] = value
    try:
        yield
    finally:
        vars(module)[name] = before
