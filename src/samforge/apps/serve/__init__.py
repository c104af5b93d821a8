"""``samforge serve``: HTTP over :mod:`samforge.serving`."""
