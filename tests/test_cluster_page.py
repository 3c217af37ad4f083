"""docs/cluster.md tells the truth: its launchers take these flags, the command does too, and what can run here runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from hybridmap.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "bash"]
LINES = [line for language, text in BLOCKS if language in ("", "bash") for line in text.splitlines()]
LAUNCHES = [line.partition("torchrun ")[2] for line in LINES if "torchrun " in line]
COMMANDS = [line.partition("-m hybridmap ")[2] for line in LINES if "-m hybridmap " in line]
LOCAL = [shlex.split(line) for line in LINES if line.startswith("torchrun --standalone")]


def test_torchrun_takes_the_flags_of_the_page() -> None:
    assert len(LAUNCHES) >= 5
    for words in map(shlex.split, LAUNCHES):
        words = ["2" if word.startswith("$SLURM_NNODES") else word for word in words]
        found = get_args_parser().parse_args(words)
        assert (found.module, found.training_script) == (True, "hybridmap")


def test_the_command_takes_the_flags_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "map-tiny", "--help"]) == 0
    known = capsys.readouterr().out
    for words in map(shlex.split, COMMANDS):
        assert words[:2] == ["pretrain", "map-tiny"]
        for flag in [word for word in words if word.startswith("--")]:
            assert flag in known
    for flag in re.findall(r"--(?:train|data)\.[\w.-]+", PAGE):
        assert flag in known


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_scripts_are_shell(script: str, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HYBRIDMAP_LONG"), reason="a minute or more: make test-long")
@pytest.mark.parametrize("words", LOCAL, ids=range(len(LOCAL)))
def test_lines_for_one_machine_run(
    words: list[str], photo_folder: Path, unchecked_environment: dict[str, str], tmp_path: Path
) -> None:
    """With HYBRIDMAP_SMOKE=1, two processes, and a folder of images instead of ~/photos."""
    (tmp_path / "photos").symlink_to(photo_folder)
    words = [word.replace("~", str(tmp_path)) for word in words]
    words[words.index("--nproc-per-node") + 1] = "2"
    environment = unchecked_environment | {"HYBRIDMAP_SMOKE": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    subprocess.run(torchrun, env=environment, cwd=tmp_path, check=True, timeout=300)
    run = tmp_path / "runs" / "tiny"
    assert (run / "final.safetensors").is_file()
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert (run / "heartbeats" / "rank-00001").is_file()
