"""What answers say of bundles, limits and time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from samforge.core.capabilities import BOXES, POINTS, TRACK
from samforge.serving import Limits, Model, Spent, State


def bundle_of(model: Model) -> dict[str, Any]:
    """Which bundle answers, and whether it is proven here."""
    return {
        "name": model.name,
        "digest": model.digest,
        "verified": model.state is State.READY,
    }


def model_of(model: Model) -> dict[str, Any]:
    """A bundle and what it can do."""
    manifest = model.bundle.manifest
    able = {"boxes": BOXES, "points": POINTS, "video": TRACK}
    return {
        "name": model.name,
        "state": str(model.state),
        "digest": model.digest,
        "family": manifest.family,
        "model": manifest.model,
        "target": manifest.target,
        "precision": str(manifest.recipe.get("precision", "fp32")),
        "image_size": manifest.image.size,
        "prompts": ["text", *(name for name, one in able.items() if one.among(model.parts))],
        "processors": list(model.processors),
        "verdict": model.verdict(),
        "error": model.trouble(),
    }


def limits_of(limits: Limits) -> dict[str, float]:
    """The server's limits, by name."""
    return asdict(limits)


def timings_of(spent: Spent, pack_ms: float) -> dict[str, float]:
    """Milliseconds of each stage."""
    stages = {
        "queue": spent.queue,
        "decode": spent.decode,
        "encode": spent.encode,
        "detect": spent.detect,
        "pack": pack_ms,
        "total": spent.total + pack_ms,
    }
    return {name: round(value, 3) for name, value in stages.items()}
