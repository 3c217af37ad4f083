"""``hybridmap models`` lists every model with numbers that it counts, and says what they count."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from hybridmap.backbones.names import ALIASES, MODELS
from hybridmap.cli import main
from hybridmap.cli.models import SOURCES

PARAMETERS_IN_MILLIONS = {  # Table 8 of MAP; HybridNet in the sizes that it prints, Mamba-R, ViT-B
    "hybridnet_tiny_patch16_224": 12,
    "hybridnet_small_patch16_224": 37,
    "hybridnet_base_paper_patch16_224": 128,
    "mambar_tiny_patch16_224": 9,
    "mambar_small_patch16_224": 28,
    "mambar_base_patch16_224": 99,
    "mambar_large_patch16_224": 341,
    "mae_deit_base_patch16_224": 86.6,
}


LINE = re.compile(r"(\S+) +(?:([\d.]+) M +([\d.]+) +(\d+(?:-\d+)?) +(\d+) +)?(\S.*?) *")


@pytest.fixture(scope="module")
def listed() -> dict[str, tuple[str | None, ...]]:
    """Name -> (parameters in millions, GMACs, width, layers, source) as printed; an alias has its source only."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["models"]) == 0
    lines = [LINE.fullmatch(line) for line in shown.getvalue().splitlines()[1:]]
    return {line[1]: line.groups()[1:] for line in lines if line and line[1] in {*MODELS, *ALIASES}}


def test_every_model_and_alias_has_a_line(listed: dict[str, tuple[str, ...]]) -> None:
    assert listed.keys() == {*MODELS, *ALIASES}
    for name, (parameters, gmacs, _, layers, source) in listed.items():
        if name in ALIASES:
            assert (parameters, source) == (None, f"= {ALIASES[name]}")
        else:
            assert float(gmacs) > 0.5
            assert int(layers) >= 8
            assert source in SOURCES.values(), f"{name} needs a line in SOURCES"


@pytest.mark.parametrize("name", PARAMETERS_IN_MILLIONS)
def test_parameters_are_those_of_the_paper(listed: dict[str, tuple[str, ...]], name: str) -> None:
    assert float(listed[name][0]) == pytest.approx(PARAMETERS_IN_MILLIONS[name], abs=0.5)


def test_the_base_vision_transformer_has_its_well_known_number(listed: dict[str, tuple[str, ...]]) -> None:
    assert float(listed["mae_vit_base_patch16_224"][1]) == pytest.approx(17.5, abs=0.1)


def test_a_model_costs_about_what_its_parameters_say(listed: dict[str, tuple[str, ...]]) -> None:
    """Nearly every weight of a sequence backbone meets each of 196 patches and a few more tokens once."""
    for name, config in MODELS.items():
        if name.startswith(("hybridnet_", "mambar_", "mae_")) and config.patch_size == 16:
            parameters, gmacs = map(float, listed[name][:2])
            assert 0.85 < gmacs * 1e3 / (parameters * 200) < 1.35, name


def test_the_convention_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "mae_deit_tiny*"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^name +parameters +GMACs +width +layers +source", shown)
    assert "GMACs: 10^9 multiply-adds" in shown
    assert "Papers\nprint the same number as GFLOPs" in shown
