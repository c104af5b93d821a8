"""The command line's frame: exit codes, JSON envelopes, warnings and where each is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from samforge.apps import cli
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_note, print_table
from samforge.apps.cli.progress import progress_bar
from samforge.core.errors import FidelityError, SamforgeWarning, SettingError
from samforge.core.words import escaped, json_text

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


DANGEROUS = "a\x1b[2J\x9b31m\r\t\x07\u202egnp\u2066\ud800\udcff\u2028b"
SHOWN = r"a\x1b[2J\x9b31m\r\t\x07\u202egnp\u2066\ud800\xff\u2028b"


def _obeyed(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


def test_nothing_that_a_terminal_obeys_is_printed(
    with_command: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        print_table(DANGEROUS, ("what",), [(DANGEROUS,), (("x", DANGEROUS + "\n"),)])
        print_line(DANGEROUS + "\nfaked")
        print_note(DANGEROUS + "\nreal")
        warnings.warn(DANGEROUS, SamforgeWarning, stacklevel=1)
        warnings.warn(DANGEROUS, UserWarning, stacklevel=1)
        with progress_bar(DANGEROUS, 3, as_json=False) as done:
            done()
        raise SettingError(f"{DANGEROUS} is wrong")

    with_command(command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["probe"]) == 2
    captured = capsys.readouterr()
    assert _obeyed(captured.out + captured.err) == set()
    assert captured.out.startswith(SHOWN + "\n")
    assert f"{SHOWN}\\nfaked\n" in captured.out
    assert f"{SHOWN}\nreal\n" in captured.err
    assert f"SettingError: {SHOWN} is wrong\n" in captured.err
    assert captured.err.count(SHOWN) == 4


def test_json_says_the_same_and_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("probe", {"name": DANGEROUS, DANGEROUS: ["é 東京", "\U000e0001", Path("/x\udcff")]})
    out = capsys.readouterr().out
    assert _obeyed(out) == set()
    read = json.loads(out)
    assert read["name"] == DANGEROUS
    assert read[DANGEROUS] == ["é 東京", "\U000e0001", "/x\udcff"]
    assert "é 東京" in out


@given(st.text(st.characters(), max_size=30))
def test_any_text_survives_json_and_is_shown_safely(text: str) -> None:
    assert json.loads(json_text({"x": text}))["x"] == text
    assert json_text(text, ascii_only=True).isascii()
    assert json.loads(json_text(text, ascii_only=True)) == text
    json_text(text).encode("utf-8")
    assert _obeyed(escaped(text)) == set()
    assert "\n" not in escaped(text)
    escaped(text).encode("utf-8")
    assert escaped(escaped(text)) == escaped(text)


def test_what_people_write_stays() -> None:
    for text in ("é 東京", "a\u00a0b", "100 % – “x”", "🙂", "C:\\x", "[red]"):
        assert escaped(text) == text


LATIN = """
import sys
from samforge.apps import cli
import typer
from samforge.apps.cli.output import JsonOption, print_json, print_line, print_table
app = typer.Typer()
app.callback()(lambda: None)
@app.command("probe")
def command(as_json: JsonOption = False) -> None:
    if as_json:
        print_json("probe", {"name": "é 東"})
        return
    print_table("é 東", ("a",), [(None,), ("…",)])
    print_line("done –")
cli.app = app
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("encoding", ["iso-8859-1", "ascii", "cp1252", "utf-8"])
def test_an_output_of_another_encoding_is_no_traceback(encoding: str) -> None:
    def run(*words: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", LATIN, *words],
            env=dict(os.environ, PYTHONIOENCODING=encoding, PYTHONUTF8="0"),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr
        return done.stdout

    assert "done" in run("probe").decode(encoding)
    out = run("probe", "--json")
    assert json.loads(out.decode("utf-8"))["name"] == "é 東"


def test_who_stops_reading_gets_no_traceback() -> None:
    code = LATIN.replace('print_line("done –")', '[print_line("x" * 1000) for _ in range(1000)]')
    with subprocess.Popen(
        [sys.executable, "-c", code, "probe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        _, err = process.communicate()
    assert process.returncode in (1, 141)  # rich ends with 1, others by the signal's number
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (OSError(28, "No space left on device", "/x/\x1b"), "PathError", 2),
        (MemoryError("17 GiB"), "OutOfMemory", 8),
    ],
)
def test_the_system_is_told_in_one_line(
    with_command: Register,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    kind: str,
    status: int,
) -> None:
    def command(as_json: JsonOption = False) -> None:
        raise error

    with_command(command)
    assert cli.main(["probe"]) == status
    assert capsys.readouterr().err.startswith(f"{kind}: ")
    assert cli.main(["probe", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == kind
