"""Pieces of ``tools/train_tiny.py``: data, forward, losses, evaluation. Not in the wheel."""
