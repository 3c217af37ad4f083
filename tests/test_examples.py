"""The files in examples/ and the code in docs/concepts.md are true."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.tokens.regions import Rows
from hybridmap.types import Batch

ROOT = Path(__file__).parents[1]
ONE_FILE = ROOT / "examples" / "map_in_one_file.py"


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location("map_in_one_file", ONE_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(size: int, patch: int, dim: int, layout: str) -> MAP:
    network = HybridNet.Config(img_size=size, patch_size=patch, embed_dim=dim, layout=layout, num_heads=4)
    return MAP.Config(backbone=network, decoder=MAPDecoder.Config(width=64, depth=2, num_heads=4)).build()


@pytest.mark.parametrize(("size", "patch", "layout"), [(32, 8, "MMMT"), (20, 4, "MTMMT")])
def test_the_story_in_one_file_computes_the_loss_of_the_library(
    one_file: ModuleType, size: int, patch: int, layout: str
) -> None:
    library = ours(size, patch, 48, layout)
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    story = one_file.MAP(size=size, patch=patch, layout=layout)
    story.load_state_dict(library.state_dict())  # the names are the same

    batch = Batch(inputs=torch.randn(2, 3, size, size), key=torch.tensor([1, 2]))
    patches = library.backbone.partition(batch.inputs)
    mask = library.draw(patches, batch)
    expected, told = library.step(patches, mask).total, story(batch.inputs, mask.masked)
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-6)

    expected.backward()
    told.backward()
    gradients = {name: parameter.grad for name, parameter in story.named_parameters()}
    for name, parameter in library.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_story_cuts_and_orders_patches_as_the_library_does(one_file: ModuleType) -> None:
    images = torch.randn(2, 3, 16, 16)
    library = ours(16, 4, 16, "M")
    patches = library.backbone.partition(images)
    assert torch.equal(one_file.patchify(images, 4), patches.content)
    story = one_file.MAP(size=16, patch=4, dim=16, layout="M")
    allowed = library.allowed(patches)
    assert isinstance(library.regions, Rows)
    assert allowed is not None
    assert torch.equal(story.allowed, allowed[0, 0])


def test_the_story_hides_the_same_number_everywhere(one_file: ModuleType) -> None:
    assert one_file.random_mask(5, 16, 0.5).sum(1).tolist() == [8] * 5


def test_the_story_learns(one_file: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_file.main(steps=2) < 2.0
    assert "loss" in capsys.readouterr().out


def test_the_story_needs_nothing_but_torch() -> None:
    imports = re.findall(r"^(?:import|from) (\S+)", ONE_FILE.read_text(), re.M)
    assert {name.split(".")[0] for name in imports} == {"torch"}
    assert len(ONE_FILE.read_text().splitlines()) < 250


def test_the_code_in_the_concepts_runs(unchecked_environment: dict[str, str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "concepts.md").read_text(), re.S)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, env=unchecked_environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
