"""The server on Ray: which replicas are asked for, and what a real local cluster does with them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from local_ray import ray_serving
from served import png

import samforge
from samforge.apps.ray import Scaling, application, serve_application
from samforge.core.errors import BundleError, MissingExtra, SettingError
from samforge.models import tiny
from samforge.serving import Limits, Served, Settings, State

SCENE = tiny.draw_scene(11, split="demo").image


class Asked:
    """``ray.serve`` that keeps what it is asked for."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.build: Callable[[], Any] | None = None
        self.replica: Any = None

    def deployment(self, **options: Any) -> Any:
        self.options = options
        return lambda _: type("Deployment", (), {"bind": staticmethod(lambda: self)})

    def ingress(self, build: Callable[[], Any]) -> Any:
        self.build = build

        def keep(replica: Any) -> Any:
            self.replica = replica
            return replica

        return keep


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    module = ModuleType("ray")
    module.serve = asked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    return asked


@pytest.fixture(scope="module")
def root(proven_bundle: Callable[..., Path]) -> Path:
    return proven_bundle("raised")


def test_what_ray_is_asked_for(ray: Asked, root: Path) -> None:
    limits = Limits(waiting=17)
    settings = Settings(bundles=(Served(name="a", path=root, threads=3),), limits=limits)
    scaling = Scaling(least=2, most=5, ongoing=4, drain_seconds=12)
    assert serve_application(settings, scaling=scaling) is ray
    assert ray.options["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 5,
        "target_ongoing_requests": 4,
    }
    assert (ray.options["max_ongoing_requests"], ray.options["max_queued_requests"]) == (17, 17)
    assert ray.options["graceful_shutdown_timeout_s"] == 12
    assert ray.options["ray_actor_options"] == {"num_cpus": 3}


def test_a_replica_has_a_gpu_of_its_own(
    ray: Asked, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = samforge.open_bundle(root)
    engine = replace(bundle, manifest=replace(bundle.manifest, target="tensorrt"))
    monkeypatch.setattr("samforge.apps.ray.serving.open_bundle", lambda path: engine)
    serve_application(root)
    assert ray.options["ray_actor_options"] == {"num_gpus": 1, "num_cpus": 1}


@pytest.mark.parametrize("devices", [("cuda:1",), ("cuda", "cpu"), ()])
def test_gpus_are_rays_to_give(ray: Asked, root: Path, devices: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match="Ray assigns"):
        serve_application(Settings(bundles=(Served(name="a", path=root, devices=devices),)))


def test_one_kind_of_device(ray: Asked, root: Path) -> None:
    bundles = tuple(Served(name=one, path=root, devices=(one,)) for one in ("cpu", "cuda"))
    with pytest.raises(SettingError, match="an application of each kind"):
        serve_application(Settings(bundles=bundles))


def test_a_replica_is_ready_when_it_is_proven(
    ray: Asked, root: Path, proven_bundle: Callable[..., Path]
) -> None:
    serve_application(root)
    assert ray.build is not None
    replica = ray.replica()
    replica.app = ray.build()
    service = replica.app.state.service
    model = service.model("raised")
    assert (model.state, model.served.digests) == (
        State.READY,
        (samforge.open_bundle(root).digest,),
    )
    assert model.served.threads == 1
    replica.check_health()
    model.scheduler.close()
    with pytest.raises(RuntimeError, match="thread"):
        replica.check_health()
    replica.__del__()
    assert model.state is State.CLOSED
    serve_application(proven_bundle("unproven", broken=True))
    with pytest.raises(BundleError, match="not served"):
        ray.build()


def test_another_bundle_than_the_pinned(ray: Asked, root: Path) -> None:
    with pytest.raises(BundleError, match="none of the bundles"):
        application({"bundle": str(root), "digest": "0" * 64})


def test_words_of_rays_command_line(ray: Asked, root: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("anna:0123456789abcdef0123\n")
    words = {"bundle": f"shapes={root}", "most": "3", "ongoing": "2.5", "threads": 2}
    assert application({**words, "tokens": str(tokens), "device": "cpu"}) is ray
    assert ray.options["autoscaling_config"]["max_replicas"] == 3
    assert ray.options["autoscaling_config"]["target_ongoing_requests"] == 2.5
    assert ray.options["ray_actor_options"] == {"num_cpus": 2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({}, "no bundle"),
        ({"bundel": "x"}, "did you mean 'bundle'"),
        ({"bundle": "x", "most": "many"}, "most is 'many'"),
        ({"bundle": "x", "threads": "2.5"}, "threads is '2.5'"),
    ],
)
def test_words_that_are_none(words: dict[str, str], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        application(words)


@pytest.mark.parametrize(
    "numbers", [{"least": 0}, {"least": 3, "most": 2}, {"ongoing": 0}, {"drain_seconds": -1}]
)
def test_scaling_that_is_none(numbers: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Scaling(**numbers)


def test_without_ray_it_is_an_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"samforge\[ray\]"):
        serve_application(root)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, as it starts and stops
def test_a_real_cluster(root: Path, proven_bundle: Callable[..., Path]) -> None:
    """Replicas answer, refuse who has no token, and lose nothing that was accepted at their end."""
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from samforge.apps.serve.door import Tokens

    token = {"Authorization": "Bearer 0123456789abcdef"}

    def make() -> Any:
        scaling = Scaling(least=2, most=2)
        own = Tokens(by_name={"anna": "0123456789abcdef"})
        return serve_application(root, scaling=scaling, tokens=own)

    with ray_serving(make) as url:
        deployment = serve.status().applications["samforge"].deployments["samforge"]
        assert deployment.replica_states == {"RUNNING": 2}
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
        assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
        statuses = []

        def ask() -> None:
            answer = httpx.post(
                f"{url}/v1/segment",
                files={"image": png(SCENE)},
                data={"text": ["star", "circle"]},
                headers=token,
                timeout=60,
            )
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for one in threads:
            one.start()
        threads[0].join()  # some are answered, others have just been accepted
        serve.delete("samforge")
        for one in threads:
            one.join()
        # What comes after the end of the route is told so; nothing breaks off.
        assert set(statuses) <= {200, 404, 503}
        assert statuses.count(200) > 0
        broken = proven_bundle("ray-unproven", broken=True)
        with pytest.raises(RuntimeError, match="samforge"):
            serve.run(serve_application(broken), route_prefix="/", name="samforge")
        status = serve.status().applications["samforge"]
        assert status.status == "DEPLOY_FAILED"
        assert "not served" in status.deployments["samforge"].message
