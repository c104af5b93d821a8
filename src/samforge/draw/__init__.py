"""Pictures of what was found."""

from samforge.draw.contact_sheet import grid
from samforge.draw.figure import Figure, demo_figure
from samforge.draw.mesh import (
    Camera,
    colors_from_values,
    frame_of,
    mesh_view,
    overlay_mesh,
    turntable,
    write_gif,
)
from samforge.draw.overlay import draw_clicks, draw_exemplars, overlay
from samforge.draw.pca import PcaPicture, pca_pictures
from samforge.draw.readout import draw_readout
from samforge.draw.tags import Tag, draw_tags

__all__ = [
    "Camera",
    "Figure",
    "PcaPicture",
    "Tag",
    "colors_from_values",
    "demo_figure",
    "draw_clicks",
    "draw_exemplars",
    "draw_readout",
    "draw_tags",
    "frame_of",
    "grid",
    "mesh_view",
    "overlay",
    "overlay_mesh",
    "pca_pictures",
    "turntable",
    "write_gif",
]
