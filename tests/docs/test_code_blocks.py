"""The code that people copy from README and docs works: Python runs, commands parse."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import samforge
from samforge.apps import cli
from samforge.media import write_png
from samforge.models.tiny import draw_scene

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CARD = ROOT / "src/samforge/models/tiny/MODEL_CARD.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NOT_RUN = {
    'bundle = samforge.build("tiny", target="onnxruntime", precision="fp32", out="build/tiny")': (
        "the session's fixture makes this very call, which takes minutes"
    ),
    'bundle = samforge.build("tiny", parts=("grounding",), until="export", out="build/one")': (
        "a minute: tests/unit/test_export.py exports the part"
    ),
    "estimator = SAM3DBodyEstimator(model, config)": (
        "upstream's checkout and gated weights; tests/unit/test_sam3d_body.py has a stand-in"
    ),
}
"""A line of each Python block that is compiled only, and why."""

TRACKED = "build/tracked"
"""A bundle with a tracker, which takes minutes to build: pages that load it are slow."""
RUN = ("predict build/tiny", "inspect build/tiny")
"""Beginnings of the commands that are cheap enough to run; the others are parsed.

Those that build facebook/sam3 or a checkpoint of the reader's own could not run: the weights are
gated.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] in languages:
            line = text.count("\n", 0, match.start(2)) + 1
            yield Block(page=page, line=line, language=match[1], text=match[2])


def _commands(block: Block) -> Iterator[str]:
    """Lines after a prompt; a block without prompts is all commands."""
    lines = block.text.splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    for line in lines:
        if line.startswith("$ ") or not prompted:
            yield line.removeprefix("$ ").strip()


def _loads_tracked(page: Path) -> bool:
    return any(TRACKED in block.text for block in _blocks(page, "python"))


COMMANDS = [
    pytest.param(command.removeprefix("samforge "), id=f"{block.place} {command}")
    for page in (*PAGES, CARD)
    for block in _blocks(page, "console", "bash")
    for command in _commands(block)
    if command.startswith("samforge ")
]


@pytest.fixture
def workplace(
    tiny_bundle: samforge.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with what the pages speak of: ``build/tiny`` and ``scene.png``."""
    (tmp_path / "build").mkdir()
    shutil.copytree(tiny_bundle.root, tmp_path / "build" / "tiny")  # verify writes into it
    write_png(tmp_path / "scene.png", draw_scene(11, split="demo").image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * _loads_tracked(page))
        for page in PAGES
        if any(_blocks(page, "python"))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python(page: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    if _loads_tracked(page):
        tracked: samforge.Bundle = request.getfixturevalue("tracked_bundle")
        shutil.copytree(tracked.root, workplace / TRACKED)
    names: dict[str, object] = {"__name__": "__main__"}
    (workplace / "scene.png").unlink()  # the pages draw it
    for block in _blocks(page, "python"):
        # The page's own line numbers in tracebacks.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if not any(line in block.text.splitlines() for line in NOT_RUN):
            exec(code, names)


def test_what_is_not_run_is_there() -> None:
    lines = [line for page in PAGES for b in _blocks(page, "python") for line in b.text.split("\n")]
    assert [line for line in NOT_RUN if lines.count(line) != 1] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if command.startswith(RUN):
        assert cli.main(words) == 0
        assert capsys.readouterr().out
        return
    _parse(words)


def test_there_are_commands_of_every_kind() -> None:
    shown = {str(param.values[0]).split()[0] for param in COMMANDS}
    assert shown == {command.name for command in cli.app.registered_commands}


def _parse(words: list[str]) -> None:
    """Parse a command line as the command itself would, without running it."""
    group = typer.main.get_command(cli.app)
    root = group.make_context("samforge", list(words))
    name, command, rest = group.resolve_command(root, words)
    command.make_context(name, rest, parent=root)


@pytest.mark.parametrize("line", ["predict build/tiny", "build tiny --outt x", "nonsense"])
def test_the_parser_refuses_what_the_command_line_refuses(line: str) -> None:
    with pytest.raises(typer.TyperException):
        _parse(line.split())


TOML = [block for page in PAGES for block in _blocks(page, "toml")]
ONTOLOGIES = [block for block in TOML if "[[classes]]" in block.text]


@pytest.mark.parametrize(
    "block", [block for block in TOML if block not in ONTOLOGIES], ids=lambda block: block.place
)
def test_recipes(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(block.text, encoding="utf-8")
    assert samforge.Recipe.from_toml(path).model == "tiny"


@pytest.mark.parametrize("block", ONTOLOGIES, ids=lambda block: block.place)
def test_ontologies(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "ontology.toml"
    path.write_text(block.text, encoding="utf-8")
    assert samforge.Ontology.from_toml(path).names[0] == "circle"
