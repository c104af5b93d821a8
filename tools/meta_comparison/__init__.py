"""Meta's code beside samforge: what ``tools/compare_with_meta.py`` is made of."""
