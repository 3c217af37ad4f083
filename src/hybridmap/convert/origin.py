"""What every converter shares: rules that carry one official tensor to ours and back, and the account of every tensor.

Converting renames, reshapes, splits or joins; it never computes. So every rule has an exact inverse, by which gradients and
statistics of our models are compared with those of the official ones, and our weights can be handed back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.config import override
from hybridmap.errors import UserError
from hybridmap.types import InitReport

Shapes = Mapping[str, tuple[int, ...]]
"""Official name -> shape: all that a converter needs to know of a file to plan the conversion."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One official tensor is one of ours, or several of ours laid one behind the other, or is left out on purpose."""

    official: str
    ours: tuple[str, ...] = ()
    """Our name, or our names in the order of the parts; none where the tensor is left out."""
    sizes: tuple[int, ...] = ()
    """Lengths of the parts along ``dim``, where there are several."""
    dim: int = 0
    """The axis of the official tensor along which the parts lie."""
    trailing: int = 0
    """How many axes of length one the official tensor has at its end and ours has not: 2 for a 1x1 convolution as a matrix."""
    untrained: bool = False
    """The released pretraining constructs and saves this tensor but never uses it."""
    left_out: str = ""
    """Why a tensor has no place in our network; empty where it has one."""
    optional: str = ""
    """Why the tensor may be missing from a file; empty where it must be there."""

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Ours from the official tensor."""
        if not self.sizes:
            return {self.ours[0]: tensor.flatten(-1 - self.trailing) if self.trailing else tensor}
        parts = tensor.split(self.sizes, self.dim)
        return {name: part.clone() for name, part in zip(self.ours, parts, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The official tensor from ours."""
        parts = [tensors[name] for name in self.ours]
        return torch.cat(parts, self.dim) if self.sizes else parts[0][(..., *(None,) * self.trailing)]


def rename(official: str, ours: str, leaves: Iterable[str] = ("",), **kwargs: bool | str) -> Iterator[Rule]:
    """Rules that only rename: ``official + leaf`` to ``ours + leaf`` for every leaf."""
    for leaf in leaves:
        yield Rule(official=official + leaf, ours=(ours + leaf,), **kwargs)  # type: ignore[arg-type]


AFFINE = (".weight", ".bias")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Weights by our names, the network they belong to, and the account of every tensor of the file."""

    family: str
    """Name of the origin, such as ``map-hybridnet``; ``hybridmap`` for our own files."""
    weights: dict[str, Tensor]
    """Backbone tensors by the backbone's own names, those of a pretraining decoder below ``decoder.``."""
    config: Backbone.Config | None
    """The network that takes :attr:`backbone` strictly; None for our own files that do not hold a backbone's configuration."""
    report: InitReport
    """``loaded`` by our names, ``dropped`` by the names in the file, ``fresh`` by our names."""
    decoder: dict[str, float] = field(default_factory=dict)
    """Width, depth, heads and MLP ratio of the pretraining decoder; empty where the file has none."""

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The weights without the decoder's: what ``config.build()`` takes."""
        return {name: value for name, value in self.weights.items() if not name.startswith("decoder.")}

    def build(self) -> Backbone:
        """The network with these weights; what the report calls fresh starts as in training.

        Raises:
            UserError: if it is not known which network they belong to.
        """
        if self.config is None:
            raise UserError("the file does not say which network its weights belong to; give the run directory it came from")
        backbone = self.config.build()
        backbone.load_state_dict(backbone.state_dict() | self.backbone)
        return backbone


class Origin(ABC):
    """One kind of official file. Subclasses give the rules and read the configuration from shapes."""

    family: ClassVar[str]
    """Short name, used in reports and in the metadata of converted files."""
    source: ClassVar[str]
    """Repository and class whose files these are."""
    untold: ClassVar[tuple[str, ...]] = ()
    """Fields of the configuration that neither names nor shapes tell, beside the heads: they are as released unless given."""

    @abstractmethod
    def recognises(self, shapes: Shapes) -> bool:
        """Whether a file with these tensors can be of this origin: a look at a few telling names."""

    @abstractmethod
    def rules(self, shapes: Shapes) -> list[Rule]:
        """Every tensor that a file of these dimensions may hold."""

    @abstractmethod
    def config(self, shapes: Shapes, *, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Backbone.Config:
        """The backbone that the shapes describe. Shapes do not tell the number of heads, nor a grid that is not square."""

    def decoder(self, shapes: Shapes) -> dict[str, float]:
        """Width, depth, MLP ratio and heads (the released value) of the pretraining decoder; empty without one."""
        if "decoder_blocks.0.mlp.fc1.weight" not in shapes:
            return {}
        hidden, width = shapes["decoder_blocks.0.mlp.fc1.weight"]
        return {"width": width, "depth": indices(shapes, "decoder_blocks."), "mlp_ratio": hidden / width, "num_heads": 16}

    def convert(
        self,
        state: Mapping[str, Tensor],
        *,
        num_heads: int | None = None,
        grid: tuple[int, int] | None = None,
        keep_untrained: bool = False,
        told: Mapping[str, Any] = NOTHING,
    ) -> Loaded:
        """An official state dict as ours.

        Args:
            state: official name -> tensor (on any device, meta included).
            num_heads: heads of the Transformer blocks, which no shape tells; by default that of the released sizes.
            grid: (rows, columns) of the position table where it is not square.
            keep_untrained: also take the registers, neck and head that the released pretraining saves but never trains.
            told: values of fields in :attr:`untold`, as values or as text.

        Raises:
            UserError: if a tensor of the file has no place in this network, or one that the network needs is missing or of
                another size; or if ``told`` names other fields.
        """
        if others := sorted(told.keys() - set(self.untold)):
            leaves = f"only {', '.join(self.untold)} can be told" if self.untold else "nothing needs to be told"
            raise UserError(f"a file of {self.source} tells {', '.join(others)} itself; {leaves}")
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        rules = self.rules(shapes)
        unexplained = sorted(state.keys() - {rule.official for rule in rules})
        missing = sorted(rule.official for rule in rules if rule.official not in state and not rule.optional)
        if unexplained or missing:
            faults = [f"{len(unexplained)} tensors have no place in it: {shorten(unexplained)}"] if unexplained else []
            faults += [f"{len(missing)} of its tensors are missing: {shorten(missing)}"] if missing else []
            raise UserError(
                f"expected a checkpoint of {self.source}, but {' and '.join(faults)};"
                " give a file of a supported model (see hybridmap models)"
            )
        weights: dict[str, Tensor] = {}
        dropped: dict[str, str] = {}
        fresh: dict[str, str] = {}
        for rule in rules:
            if rule.official not in state:
                fresh |= dict.fromkeys(rule.ours, rule.optional)
            elif rule.left_out:
                dropped[rule.official] = rule.left_out
            elif rule.untrained and not keep_untrained:
                dropped[rule.official] = "saved by the released pretraining, which never trains it"
            else:
                weights |= rule.split(state[rule.official])
        config = override(self.config(shapes, num_heads=num_heads, grid=grid), told)
        pretraining = any(rule.untrained and rule.official in dropped for rule in rules)
        loaded = Loaded(
            family=self.family,
            weights=weights,
            config=config.encoder() if pretraining else config,
            report=InitReport(loaded=tuple(weights), dropped=dropped, fresh=fresh),
            decoder=self.decoder(shapes),
        )
        check_fit(loaded)
        return loaded

    def restore(self, tensors: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
        """The inverse of :meth:`convert`: official names and layout of those tensors that we have (weights or gradients).

        Args:
            tensors: by our names; an official tensor is left out when one of its parts is not there.
            shapes: of the official file, from which the rules follow.
        """
        rules = self.rules(shapes)
        ours = [rule for rule in rules if rule.ours and all(name in tensors for name in rule.ours)]
        return {rule.official: rule.join(tensors) for rule in ours}


def check_fit(loaded: Loaded) -> None:
    """See whether the network that goes with the weights takes them: every tensor that it has, in its size, and no other.

    Raises:
        UserError: naming what does not fit.
    """
    assert loaded.config is not None
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in loaded.config.build().state_dict().items()}
    given = {name: tuple(value.shape) for name, value in loaded.backbone.items()}
    sizes = [
        f"{name} {given[name]} for {wanted[name]}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name] != wanted[name]
    ]
    missing = sorted(wanted.keys() - given.keys() - loaded.report.fresh.keys())
    beyond = sorted(given.keys() - wanted.keys())
    faults = [f"{len(sizes)} are of another size ({shorten(sizes, 3)})"] if sizes else []
    faults += [f"{len(missing)} are missing ({shorten(missing)})"] if missing else []
    faults += [f"{len(beyond)} have no place in it ({shorten(beyond)})"] if beyond else []
    if faults:
        network = type(loaded.config).__qualname__.partition(".")[0]
        raise UserError(
            f"the tensors make no whole {network}: {', '.join(faults)}; copy the file again, or if it is whole, say what shapes"
            " do not tell of its network (docs/weights.md)"
        )


def indices(shapes: Shapes, prefix: str) -> int:
    """How many consecutive numbers 0, 1, 2, ... follow ``prefix`` in the names."""
    found = {int(n) for name in shapes if name.startswith(prefix) and (n := name[len(prefix) :].partition(".")[0]).isdigit()}
    return next(i for i in range(len(found) + 1) if i not in found)


def square(positions: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid of a position table: the given one, or the square one."""
    if grid is None:
        side = round(positions**0.5)
        grid = (side, side)
    if grid[0] * grid[1] != positions:
        raise UserError(
            f"the file has {positions} positions, which is no grid of {grid[0]}x{grid[1]}; pass grid=(rows, columns)"
            " (--grid ROWS COLUMNS)"
        )
    return grid


def shorten(names: list[str], shown: int = 8) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
