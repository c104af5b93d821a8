"""The command line's frame: exit codes, JSON envelopes, warnings and where each is printed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable

import pytest
import typer

from samforge.apps import cli
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_table
from samforge.core.errors import FidelityError, SamforgeWarning, SettingError

Register = Callable[[Callable[..., None]], None]


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Put one command into an application of its own."""

    def register(command: Callable[..., None]) -> None:
        app = typer.Typer()
        app.command("probe")(command)
        app.callback()(lambda: None)
        monkeypatch.setattr(cli, "app", app)

    return register


@pytest.mark.parametrize(("error", "status"), [(SettingError, 2), (FidelityError, 7)])
def test_an_error_is_a_red_paragraph_and_its_exit_code(
    with_command: Register,
    capsys: pytest.CaptureFixture[str],
    error: type[Exception],
    status: int,
) -> None:
    def command(as_json: JsonOption = False) -> None:
        raise error("size is 3 [bold]. Give 14.")

    with_command(command)
    assert cli.main(["probe"]) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{error.__name__}: size is 3 [bold]. Give 14.\n")
    assert cli.main(["probe", "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "schema": 1,
        "command": "probe",
        "ok": False,
        "error": {
            "kind": error.__name__,
            "message": "size is 3 [bold]. Give 14.",
            "exit_code": status,
        },
    }


def test_an_interrupt_is_130(with_command: Register, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    with_command(command)
    assert cli.main(["probe"]) == 130
    err = capsys.readouterr().err
    assert "Stopped." in err
    assert "resume" not in err  # only builds resume


def test_a_bug_keeps_its_traceback(with_command: Register) -> None:
    def command() -> None:
        raise ZeroDivisionError("a bug")

    with_command(command)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["probe"])


def test_warnings_of_samforge_are_lines_each_time(
    with_command: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        for _ in range(2):
            warnings.warn("the phrase was cut", SamforgeWarning, stacklevel=1)

    with_command(command)
    before = warnings.showwarning
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().err == "Warning: the phrase was cut\n" * 2
    assert warnings.showwarning is before


@pytest.mark.parametrize("words", [["nonsense"], ["doctor", "--jsn"], []])
def test_wrong_usage_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert "samforge" in captured.out + captured.err


def test_wrong_usage_names_the_page_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nonsense"]) == 2
    assert capsys.readouterr().err.endswith("See: samforge --help.\n")
    assert cli.main(["doctor", "--jsn"]) == 2
    assert capsys.readouterr().err.endswith("See: samforge doctor --help.\n")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "samforge 0.1.0\n"


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("bench", {"sqnr_db": float("inf"), "rows": ({"ms": 1.5},)})
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "command": "bench",
        "ok": True,
        "sqnr_db": "inf",
        "rows": [{"ms": 1.5}],
    }


def test_tables_show_brackets_and_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Parts [red]", ("part", "MiB"), [("a[b]", 3), ("c", None)], numbers=("MiB",))
    print_line("pip install 'samforge[build]' " + "x" * 200)
    out = capsys.readouterr().out
    assert "Parts [red]" in out
    assert "│ a[b] │   3 │" in out
    assert "│ c    │   – │" in out
    assert out.endswith("pip install 'samforge[build]' " + "x" * 200 + "\n")
