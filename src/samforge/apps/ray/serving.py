"""``samforge serve`` on a Ray cluster: the same application in each replica, behind Ray Serve.

The options are those of https://docs.ray.io/en/latest/serve/configure-serve-deployment.html.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samforge.core.bundle import open_bundle
from samforge.core.devices import AUTO, CUDA
from samforge.core.errors import BundleError, MissingExtra, SettingError
from samforge.core.targets import target_from_name
from samforge.serving import Served, Service, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from samforge.apps.serve.door import Tokens

_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 10.0, 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How many replicas there are, and how they end.

    Raises:
        SettingError: There is to be none, or a number is not above zero.
    """

    least: int = 1
    """Replicas that are always there."""
    most: int = 1
    """Replicas under load; each has a GPU of its own where the bundles run on one."""
    ongoing: float = 8.0
    """Requests at a time that a replica should have: Ray starts and ends replicas to hold it."""
    drain_seconds: float = 30.0
    """Time that accepted requests have to end before a replica does."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise SettingError(
                f"least is {self.least} and most is {self.most}. Give 1 replica at least, and no "
                "fewer at most."
            )
        for name, value in (("ongoing", self.ongoing), ("drain_seconds", self.drain_seconds)):
            if not 0 < value < 1e6:
                raise SettingError(f"{name} is {value!r:.40}. Give a number above 0.")


def serve_application(
    bundle: str | Path | Settings,
    *,
    scaling: Scaling | None = None,
    tokens: Tokens | None = None,
) -> Any:
    """Make an application for ``ray.serve.run``: what ``samforge serve`` serves, in replicas.

    A replica is ready once every bundle has held its proof on its machine; one that does not hold
    it is never served. All replicas serve the bundle that this process sees: its digest is pinned.
    Nodes read it under the same path.

    Args:
        bundle: A bundle's folder, or what to serve, with limits. Devices are ``auto``, ``cpu`` or
            ``cuda``: Ray decides which GPU a replica has.
        scaling: How many replicas.
        tokens: Who may ask; None lets everybody who reaches Ray's proxy.

    Returns:
        A ``ray.serve.Application``.

    Raises:
        BundleError: A bundle cannot be opened.
        MissingExtra: Ray Serve, or what the server needs, is not installed.
        SettingError: A device is a GPU by number, or bundles want different kinds.
    """
    try:
        from ray import serve

        from samforge.apps.serve.app import app_from_settings
        from samforge.apps.serve.logs import log_to_stderr
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("samforge"):
            raise
        raise MissingExtra(str(error.name), "ray") from error
    settings, on_gpu = _placed(_settings(bundle))

    def build() -> FastAPI:
        # In a replica: its process is its own.
        log_to_stderr()
        return _ready(app_from_settings(settings, tokens=tokens))

    wanted = scaling or Scaling()
    threads = max(one.threads or 1 for one in settings.bundles)
    deployment = serve.deployment(
        name="samforge",
        autoscaling_config={
            "min_replicas": wanted.least,
            "max_replicas": wanted.most,
            "target_ongoing_requests": wanted.ongoing,
        },
        # The service refuses what would be late, by what it measures; Ray holds no more than that.
        max_ongoing_requests=settings.limits.waiting,
        max_queued_requests=settings.limits.waiting,
        graceful_shutdown_timeout_s=wanted.drain_seconds,
        graceful_shutdown_wait_loop_s=min(1.0, wanted.drain_seconds),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options={"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": threads},
    )
    return deployment(serve.ingress(build)(Replica)).bind()


class Replica:
    """What Ray Serve asks of a replica beside its requests; ``app`` is the application's."""

    app: Any
    """Ray gives it."""

    def check_health(self) -> None:
        """Tell Ray to replace a replica whose threads are not all alive.

        Raises:
            RuntimeError: They are not.
        """
        service: Service = self.app.state.service
        if not service.is_alive():
            raise RuntimeError("A thread of the service has ended. Its log says why.")

    def __del__(self) -> None:
        """Ray has let what was accepted end: free the parts."""
        app = getattr(self, "app", None)  # none where it was never built
        if app is not None:
            app.state.service.close()


def _settings(bundle: str | Path | Settings) -> Settings:
    if isinstance(bundle, Settings):
        return bundle
    path = Path(bundle).resolve()
    return Settings(bundles=(Served(name=path.name, path=path),))


def _placed(settings: Settings) -> tuple[Settings, bool]:
    """Bundles by the digests they have now, as one replica runs them; and whether on a GPU."""
    placed, kinds = [], set()
    for served in settings.bundles:
        bundle = open_bundle(served.path)
        if served.digests and bundle.digest not in served.digests:
            raise BundleError(
                f"{bundle.root} is none of the bundles that were asked for: its digest is "
                f"{bundle.digest}. Review it, and pin that."
            )
        if len(served.devices) != 1 or ":" in served.devices[0]:
            raise SettingError(
                f"devices of {served.name} are {', '.join(served.devices)}. Give auto, cpu or "
                "cuda: each replica has a GPU that Ray assigns."
            )
        device = served.devices[0]
        if device == AUTO:
            device = target_from_name(bundle.manifest.target).devices[0]
        kinds.add(device)
        placed.append(
            replace(
                served,
                path=bundle.root,
                devices=(device,),
                threads=served.threads if device == CUDA else served.threads or 1,
                digests=(bundle.digest,),
            )
        )
    if len(kinds) != 1:
        raise SettingError(
            "Some bundles run on a GPU and some on the processor. Make an application of each kind."
        )
    return replace(settings, bundles=tuple(placed)), kinds == {CUDA}


def _ready(app: FastAPI) -> FastAPI:
    """Start what is behind an application, and wait until every bundle has held its proof.

    Raises:
        BundleError: One did not: Ray shows why, and routes nothing to the replica.
    """
    service: Service = app.state.service
    service.start()
    if not service.wait():
        errors = [model.proof.error for model in service.models.values()]
        service.close()
        raise BundleError(
            "The bundles are not served: " + "; ".join(str(one) for one in errors if one)
        )
    return app
