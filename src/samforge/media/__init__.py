"""Images in and out."""

from samforge.media.images import MAX_PIXELS, list_images, read_image, write_png

__all__ = ["MAX_PIXELS", "list_images", "read_image", "write_png"]
