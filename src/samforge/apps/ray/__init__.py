"""Many machines by Ray: labelling behind Ray Data, and the server behind Ray Serve."""

from samforge.apps.ray.arguments import application
from samforge.apps.ray.engine import ray_engine
from samforge.apps.ray.serving import Scaling, serve_application

__all__ = ["Scaling", "application", "ray_engine", "serve_application"]
