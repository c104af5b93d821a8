"""DINOv3, the image backbone of SAM 3D Body: a checkpoint becomes the part ``backbone``."""
