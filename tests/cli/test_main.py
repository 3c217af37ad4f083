"""The entry: commands are found, mistakes are one sentence on stderr and exit code 2, and nothing is imported early."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybridmap import cli
from hybridmap.cli import COMMANDS, main
from hybridmap.errors import UserError


def failing(error: BaseException):
    def run(name: str, arguments: list[str]) -> int:
        raise error

    return run


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        for name, (_, purpose) in COMMANDS.items():
            assert re.search(rf"^  {name} .*{re.escape(purpose)}$", shown, re.MULTILINE)


def test_every_command_has_its_file_and_every_file_its_command() -> None:
    folder = Path(cli.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "\ndef main(arguments" in path.read_text()}
    assert files == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"hybridmap {command}" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"hybridmap \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_an_unknown_command_is_told_with_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretain"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("hybridmap: there is no command 'pretain'; did you mean pretrain")
    assert shown.err.count("\n") == 1


def test_a_mistake_is_one_sentence_and_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_run", failing(UserError("expected a, got b; try c")))
    assert main(["pretrain", "x"]) == 2
    assert capsys.readouterr().err == "hybridmap pretrain: expected a, got b; try c\n"
    assert main(["pretrain", "x", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("hybridmap pretrain: expected a, got b; try c\n")


def test_an_error_of_the_system_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_run", failing(PermissionError(13, "Permission denied", "runs/x")))
    assert main(["embed"]) == 2
    assert capsys.readouterr().err == (
        "hybridmap embed: the system says: Permission denied (runs/x); check the path, its permissions and the free space\n"
    )


def test_under_torchrun_the_process_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_run", failing(UserError("no")))
    monkeypatch.setenv("RANK", "3")
    assert main(["pretrain"]) == 2
    assert capsys.readouterr().err == "hybridmap pretrain (process 3): no\n"


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", failing(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["pretrain"])


def test_exit_codes_of_interrupted_runs_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code in ((SystemExit(0), 0), (SystemExit(130), 130), (SystemExit(None), 0), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(cli, "_run", failing(error))
        assert main(["pretrain"]) == code


def test_the_module_and_the_command_are_the_same() -> None:
    environment = os.environ | {"HYBRIDMAP_NO_SHAPE_CHECKS": "1"}
    outputs = [
        subprocess.run([*start, "--help"], capture_output=True, text=True, check=True, env=environment, timeout=300).stdout
        for start in ([sys.executable, "-m", "hybridmap"], [str(Path(sys.executable).with_name("hybridmap"))])
    ]
    assert outputs[0] == outputs[1] != ""


def test_the_overview_imports_no_command() -> None:
    code = (
        "import sys, timm; before = set(sys.modules); from hybridmap.cli import main; main([]);"
        "heavy = {'torchvision', 'matplotlib', 'rich', 'tyro', 'hybridmap.train', 'hybridmap.data'};"
        "assert not heavy & (set(sys.modules) - before)"
    )
    environment = os.environ | {"HYBRIDMAP_NO_SHAPE_CHECKS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300, stdout=subprocess.DEVNULL)
