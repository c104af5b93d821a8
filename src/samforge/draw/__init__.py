"""Pictures of what was found."""

from samforge.draw.contact_sheet import grid
from samforge.draw.overlay import draw_exemplars, overlay

__all__ = ["draw_exemplars", "grid", "overlay"]
