"""Configurations: choice by type, one way to vary, a record that reads back equal."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

import hybridmap.config as config_module
from hybridmap.config import (
    Config,
    Configurable,
    differences,
    from_yaml,
    overlay,
    override,
    parse_yaml,
    to_yaml,
)
from hybridmap.errors import UserError


class Shape(Configurable):
    @dataclass(frozen=True, kw_only=True)
    class Config(Config):
        ratio: float = 0.5


class Square(Shape):
    @dataclass(frozen=True, kw_only=True)
    class Config(Shape.Config):
        side: tuple[int, int] | int = 3
        mode: Literal["a", "b"] = "a"
        fill: bool = False


class Round(Shape):
    @dataclass(frozen=True, kw_only=True)
    class Config(Shape.Config):
        radius: int | None = None


@dataclass(frozen=True, kw_only=True)
class Drawing(Config):
    shape: Shape.Config = field(default_factory=Square.Config)
    extras: dict[str, Shape.Config] = field(default_factory=dict)
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture(autouse=True)
def _trust_this_module(monkeypatch):
    monkeypatch.setattr(config_module, "trusted_modules", {"hybridmap", __name__.partition(".")[0]})


def test_a_config_builds_its_owner():
    assert isinstance(Round.Config().build(), Round)
    assert Square.Config(ratio=0.25).build().config.ratio == 0.25


def test_yaml_round_trip_is_the_identity():
    drawing = Drawing(shape=Round.Config(radius=2), extras={"x": Square.Config(side=(4, 5))}, sizes=(7,))
    assert from_yaml(to_yaml(drawing)) == drawing


def test_override_changes_only_what_is_named_and_reads_text():
    changed = override(Drawing(), {"shape.ratio": "0.75", "shape.side": "2,3", "sizes": "4 5 6", "shape.fill": "true"})
    assert changed == Drawing(shape=Square.Config(ratio=0.75, side=(2, 3), fill=True), sizes=(4, 5, 6))
    assert differences(Drawing(), changed).keys() == {"shape.ratio", "shape.side", "sizes", "shape.fill"}


def test_override_of_the_type_carries_shared_fields_over():
    drawing = Drawing(shape=Square.Config(ratio=0.9))
    assert override(drawing, {"shape.type": "Round", "shape.radius": 4}).shape == Round.Config(ratio=0.9, radius=4)


def test_a_partial_yaml_file_lies_over_a_config():
    tree = parse_yaml(f"shape:\n  ratio: 1e-1\nextras:\n  y: {{type: '{__name__}:Round', radius: 3}}\n", "x.yaml")
    assert overlay(Drawing(), tree) == Drawing(shape=Square.Config(ratio=0.1), extras={"y": Round.Config(radius=3)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape.rato": 1}, "unknown field 'shape.rato'; did you mean 'ratio'"),
        ({"shape.ratio": "much"}, "shape.ratio must be a number, got 'much'"),
        ({"shape.mode": "c"}, "shape.mode must be one of a, b, got 'c'"),
        ({"shape.fill": 3}, "shape.fill must be true or false, got 3"),
        ({"shape": 3}, "shape must be a group of fields, got 3"),
        ({"shape.side": (1, 2, 3)}, "shape.side must be"),
        ({"sizes": ["a"]}, "sizes.0 must be an integer"),
        ({"shape.type": "os:system"}, "is not of hybridmap"),
        ({"shape.type": "Triangle"}, "there is no type"),
        ({"shape.type": "Drawing"}, f"shape must be of type {__name__}:Shape, got {__name__}:Drawing"),
    ],
)
def test_a_wrong_change_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        override(Drawing(), changes)


def test_yaml_cannot_run_code_or_name_foreign_modules():
    with pytest.raises(UserError, match="not valid YAML"):
        from_yaml("!!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not of hybridmap"):
        from_yaml("type: subprocess:Popen")
    with pytest.raises(UserError, match="not a configurable class"):
        from_yaml("type: hybridmap.hashing:uniform")
    with pytest.raises(UserError, match="must hold a mapping"):
        from_yaml("- 1")
    with pytest.raises(UserError, match="has no 'type'"):
        from_yaml("ratio: 1")
