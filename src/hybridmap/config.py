"""Configuration is ordinary typed Python: a frozen dataclass beside the class that it builds.

    class Random(Masking):
        @dataclass(frozen=True, kw_only=True)
        class Config(Masking.Config):
            ratio: float = 0.5                    # documented once, here

    Random.Config(ratio=0.75).build()             # -> Random
    override(recipe, {"learner.masking.ratio": 0.75})

Choice is by type: ``masking=Random.Config(...)``. A class in a user's own file works as it is. There is one way to vary a
configuration, :func:`override`; flags, derived recipes and table rows are all this function. A configuration is written as
YAML for the record, where a chosen type stands as ``type: hybridmap.tokens.masking:Random``; only config classes of hybridmap,
or of modules that the user named, are accepted when it is read back. Source of the idea: torchtitan's ``Configurable`` (BSD-3).
"""

from __future__ import annotations

import importlib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from hybridmap.errors import UserError

trusted_modules: set[str] = {"hybridmap"}
"""Top-level modules whose config classes may be named in a YAML file; ``--import`` adds to it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations. Immutable; fields are numbers, strings, tuples, other configs, or dicts of configs."""

    owner: ClassVar[type[Configurable]]

    def build(self, **runtime: Any) -> Any:
        """Make the object that this configuration describes; ``runtime`` is what only the caller knows (a device, data)."""
        return self.owner(self, **runtime)

    def small(self) -> Any:
        """The same at the smallest size that still has all of its parts, for trying things out in seconds.

        What stands inside is made small, too. Whoever has a size of its own says here what is small.
        """
        inside = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.small() for name, value in inside.items() if isinstance(value, Config)})


class Configurable:
    """Base of all classes that are built from a nested ``Config``. Their constructor takes it as its first argument."""

    Config: type[Config]

    def __init__(self, config: Any, **runtime: Any) -> None:
        super().__init__()
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls):
            cls.Config.owner = cls


def type_name(config: Config) -> str:
    """``module:Class`` of what a configuration builds, the form used in YAML; plain records name themselves."""
    cls = getattr(type(config), "owner", type(config))
    return f"{cls.__module__}:{cls.__qualname__}"


def config_class(name: str) -> type[Config]:
    """The config class behind ``module:Class``.

    Raises:
        UserError: if the module is not trusted, or there is no such config class in it.
    """
    module_name, _, qualname = name.partition(":")
    if module_name.partition(".")[0] not in trusted_modules:
        raise UserError(f"type {name!r} is not of hybridmap; if you trust the module, name it with --import {module_name}")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise UserError(f"there is no type {name!r}; expected MODULE:CLASS, such as hybridmap.tokens.masking:Random") from None
    found = getattr(found, "Config", found)
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise UserError(f"type {name!r} is not a configurable class")
    return found


@cache
def field_types(cls: type[Config]) -> dict[str, Any]:
    """Field name -> resolved type of a config class."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def to_tree(config: Config) -> dict[str, Any]:
    """Nested dicts, lists and plain values that describe ``config`` completely, each nested config with its ``type``."""

    def plain(value: Any) -> Any:
        if isinstance(value, Config):
            return {"type": type_name(value)} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return plain(config)


def from_tree(tree: Mapping[str, Any], path: str = "") -> Any:
    """The inverse of :func:`to_tree`; fields that are left out keep their defaults."""
    if "type" not in tree:
        raise UserError(f"{path or 'the file'} has no 'type'; expected a line such as type: hybridmap.tokens.masking:Random")
    cls = config_class(str(tree["type"]))
    values = {k: v for k, v in tree.items() if k != "type"}
    _reject_unknown(cls, values, path)
    kinds = field_types(cls)
    try:
        return cls(**{k: _coerce(v, kinds[k], f"{path}.{k}".lstrip("."), None) for k, v in values.items()})
    except TypeError as error:
        raise UserError(f"{path or 'the file'} is incomplete: {error}") from None


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """A new configuration with some dotted fields changed: ``override(recipe, {"learner.masking.ratio": 0.75})``.

    Values may be given as text (``"0.75"``). ``"learner.masking.type": "hybridmap.tokens.masking:Sequential"`` (or just
    ``"Sequential"`` for a class of the same module) chooses another class; the fields that both have are carried over.

    Raises:
        UserError: for a name that does not exist or a value of the wrong type.
    """
    tree: dict[str, Any] = {}
    for path, value in changes.items():
        node = tree
        *parents, leaf = path.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return overlay(config, tree)


def overlay(config: Any, tree: Mapping[str, Any], path: str = "") -> Any:
    """A new configuration with a partial tree (such as a YAML file) laid over it; unknown keys are rejected."""
    if "type" in tree:
        config = _change_type(config, str(tree["type"]))
        tree = {k: v for k, v in tree.items() if k != "type"}
    _reject_unknown(type(config), tree, path)
    kinds = field_types(type(config))
    changes = {
        name: _coerce(value, kinds[name], f"{path}.{name}".lstrip("."), getattr(config, name)) for name, value in tree.items()
    }
    return replace(config, **changes)


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted fields in which two configurations differ -> (value in a, value in b); missing ones are None."""
    left, right = dict(_leaves(to_tree(a))), dict(_leaves(to_tree(b)))
    return {k: (left.get(k), right.get(k)) for k in sorted(left.keys() | right.keys()) if left.get(k) != right.get(k)}


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML."""
    import yaml

    return yaml.safe_dump(to_tree(config), sort_keys=False, width=120)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Read YAML (without running code) that must hold a mapping; ``name`` is the file's, for the message."""
    import yaml

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{name} must hold a mapping of fields to values, but holds a {type(tree).__name__}")
    return tree or {}


def from_yaml(text: str, name: str = "the file") -> Any:
    """The configuration that :func:`to_yaml` wrote."""
    return from_tree(parse_yaml(text, name))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, tree


def _reject_unknown(cls: type, tree: Mapping[str, Any], path: str) -> None:
    known = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    for name in tree:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"unknown field {f'{path}.{name}'.lstrip('.')!r}; {hint}")


def _change_type(config: Any, name: str) -> Any:
    if ":" not in name:
        name = f"{type_name(config).partition(':')[0]}:{name}"
    cls = config_class(name)
    if cls is type(config):
        return config
    kinds = field_types(cls)
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name in kinds} if is_dataclass(config) else {}
    kept = {field: value for field, value in shared.items() if _fits(value, kinds[field])}
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    for field in sorted(required - kept.keys()):
        have = f", not {type_name(shared[field])}" if field in shared else ""
        raise UserError(f"type {name!r} needs {field}: {_spell(kinds[field])}{have}; choose a recipe or a field that fits")
    return cls(**kept)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a nested config is of the kind that a field declares; other values are checked when they are set."""
    return not (isinstance(value, Config) and isinstance(kind, type) and issubclass(kind, Config)) or isinstance(value, kind)


def _coerce(value: Any, kind: Any, path: str, current: Any) -> Any:
    """``value`` as the declared type ``kind``; text becomes numbers, lists tuples, mappings configs (over ``current``)."""
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(kind), path, current)
    if isinstance(kind, type) and issubclass(kind, Config):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            made = from_tree(value, path) if current is None else overlay(current, value, path)
            if not isinstance(made, kind):
                raise UserError(f"{path} must be of type {_spell(kind)}, got {type_name(made)}")
            return made
        raise _wrong(path, "a group of fields", value)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise _wrong(path, "a mapping", value)
        item = (get_args(kind) or (str, Any))[1]
        current = dict(current or {})
        return current | {k: _coerce(v, item, f"{path}.{k}", current.get(k)) for k, v in value.items()}
    if origin is tuple:
        return _coerce_tuple(value, get_args(kind), path)
    if origin is Literal:
        for option in get_args(kind):
            if value == option or str(value) == str(option):
                return option
        raise _wrong(path, "one of " + ", ".join(map(str, get_args(kind))), value)
    return _coerce_scalar(value, kind, path)


def _coerce_union(value: Any, options: tuple[Any, ...], path: str, current: Any) -> Any:
    if (value is None or (isinstance(value, str) and value.lower() == "none")) and type(None) in options:
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return _coerce(value, option, path, current)
        except UserError:
            if len(options) == 1 + (type(None) in options):
                raise
    raise _wrong(path, " or ".join(_spell(option) for option in options), value)


def _coerce_tuple(value: Any, items: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part for part in value.replace(",", " ").split() if part]
    if not isinstance(value, list | tuple):
        raise _wrong(path, "a list", value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _wrong(path, f"{len(items)} values", value)
    return tuple(_coerce(v, kind, f"{path}.{i}", None) for i, (v, kind) in enumerate(zip(value, items, strict=True)))


def _coerce_scalar(value: Any, kind: Any, path: str) -> Any:
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False}
        if isinstance(value, bool) or str(value).lower() in words:
            return words.get(str(value).lower(), value)
    elif kind is int and not isinstance(value, bool):
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return int(value)
        if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            return int(value)
    elif kind is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isnan(number):
            return number
    elif kind is str and isinstance(value, str | int | float):
        return str(value)
    elif kind is type(None) and value is None:
        return None
    raise _wrong(path, _spell(kind), value)


def _spell(kind: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    if isinstance(kind, type) and issubclass(kind, Config):
        owner = getattr(kind, "owner", kind)
        return f"{owner.__module__}:{owner.__qualname__}"
    return names.get(kind, str(kind))


def _wrong(path: str, expected: str, value: Any) -> UserError:
    return UserError(f"{path} must be {expected}, got {value!r}")


__all__ = [
    "Config",
    "Configurable",
    "config_class",
    "differences",
    "from_tree",
    "from_yaml",
    "overlay",
    "override",
    "parse_yaml",
    "to_tree",
    "to_yaml",
    "type_name",
]
