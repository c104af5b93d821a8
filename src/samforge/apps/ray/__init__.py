"""Labelling on a Ray cluster: the same code as on one machine, behind Ray Data."""

from samforge.apps.ray.engine import ray_engine

__all__ = ["ray_engine"]
