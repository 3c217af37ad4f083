"""``hybridmap bench ops|model|step``: how fast operators, backbones and a training step run here, as ratios of one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from hybridmap.cli.flags import Common, closest, parse
from hybridmap.cli.output import console
from hybridmap.cli.runs import device_named, first_word, smoke
from hybridmap.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Bench(Common):
    """What all have in common."""

    batch: int = 8
    """Images."""
    rounds: int = 5
    """Measured rounds, in each of which everybody has a turn; medians are shown."""
    threads: int = 1
    """Threads on a CPU. One is measured by CPU time, which other load hardly changes, several by wall time."""
    csv: Path | None = None
    """Also write the table there."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(f"--{field.name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class OperatorOptions(Bench):
    length: int = 98
    """Tokens, L: the visible half of 14 x 14 patches."""
    width: int = 768
    """Inner width, E."""
    state: int = 16
    """State size, S."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the activations."""
    compiled: bool = False
    """Let the loop over unbind, compiled by torch.compile, take part: a minute for compiling it."""


@dataclass(frozen=True, kw_only=True)
class StepOptions(Bench):
    recipe: tyro.conf.Positional[str] = "map-base"
    """Whose learner takes the steps; hybridmap recipes lists them."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Of the autocast regions; default: as the recipe says."""
    compile: bool = False
    """Compile the learner's step with torch.compile first."""
    memory: bool = True
    """Take the peak of memory too, in a fresh process each on a CPU."""
    images: int = 1_281_167
    """Images of an epoch, for the hours of a whole run; default: those of ImageNet-1K."""
    devices: int = 8
    """Devices like this one that a whole run might use."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Bench):
    names: tyro.conf.Positional[tuple[str, ...]]
    """Models side by side, the first of which the others are compared with; hybridmap models lists them."""
    img_size: int | None = None
    """Height and width of the images in pixels; default: each model's own."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 are autocast regions over float32 weights, in inference too."""
    train: bool = True
    """Measure a training step as well."""
    memory: bool = True
    """Take the peak of memory too, in a fresh process each on a CPU."""


def main(arguments: Sequence[str]) -> int:
    """Measure one of the three."""
    found: dict[str, Callable[[Sequence[str]], int]] = {"ops": bench_ops, "model": bench_model, "step": bench_step}
    what = first_word(arguments, "bench", "ops, model or step")
    if what in ("-h", "--help"):
        print(
            "usage: hybridmap bench ops [flags]            each operator beside others that compute the same, and its floors\n"
            "       hybridmap bench model NAME... [flags]  backbones side by side: images/s and peak memory\n"
            "       hybridmap bench step [RECIPE] [flags]  a training step beside plain PyTorch and its products alone\n\n"
            "hybridmap bench ops --help and so on list the flags."
        )
        return 0
    if what not in found:
        raise UserError(f"bench measures ops, model or step, got {what!r}; {closest(what, found, 'hybridmap bench --help')}")
    return found[what](arguments[1:])


def bench_ops(arguments: Sequence[str]) -> int:
    """Every operator: ours, plain PyTorch, the formula, peers, floors."""
    from hybridmap.bench.operators import DTYPES, Direction, Shape, contestants, problems, race
    from hybridmap.bench.sheet import operators_sheet

    options = parse(OperatorOptions, arguments, "bench ops", "Each operator beside others that compute the same, and floors.")
    if smoke():
        options = replace(options, batch=1, length=8, width=16, state=4, rounds=1)
    device = _prepare(options)
    shape = Shape(options.batch, options.length, options.width, options.state)
    directions: tuple[Direction, ...] = ("forward", "forward + backward")
    rows = []
    for problem in problems(shape, DTYPES[options.dtype], device, compiled=options.compiled):
        rows += race(problem, contestants(problem, device), directions, options.rounds)
    facts = {"shape": "x".join(map(str, shape)), "dtype": options.dtype} | _machine(options, device)
    _show(operators_sheet(rows, directions), facts, options)
    return 0


def bench_model(arguments: Sequence[str]) -> int:
    """Backbones side by side: inference and a training step."""
    from hybridmap.backbones.names import find
    from hybridmap.bench.models import PEAKS, TIMED, Protocol, measure
    from hybridmap.bench.sheet import models_sheet

    options = parse(ModelOptions, arguments, "bench model", "Backbones side by side: images per second and peak memory.")
    if not options.names:
        raise UserError("expected the names of models, such as hybridnet_tiny_patch16_224; hybridmap models lists them all")
    configs = {name: find(name) for name in options.names}
    if smoke():
        configs = {name: config.small() for name, config in configs.items()}
        options = replace(options, batch=2, rounds=1)
    if options.img_size is not None:
        configs = {name: replace(config, img_size=options.img_size) for name, config in configs.items()}
    protocol = Protocol(
        batch=options.batch,
        dtype=options.dtype,
        rounds=options.rounds,
        phases=("inference", "training") if options.train else ("inference",),
        memory=options.memory,
    )
    device = _prepare(options)
    with _enough_memory(device, options.batch, "try a smaller --batch or --img-size, fewer models or --no-train"):
        measured = measure(configs, device, protocol)
    facts = {"batch": options.batch, "dtype": options.dtype} | _machine(options, device)
    _show(models_sheet(measured, protocol.phases), facts, options)
    out = console()
    for phase in protocol.phases:
        out.print(f"{phase}: {TIMED[phase]}")
    if options.memory:
        out.print(f"peak: {PEAKS.get(device.type, 'this device does not say')}")
    out.print("images/s: of the median of the rounds, in each of which every model has a turn; / first: over the first model's")
    return 0


def bench_step(arguments: Sequence[str]) -> int:
    """A training step: ours, with plain PyTorch kernels, and its matrix products alone."""
    from hybridmap import recipes
    from hybridmap.bench.products import peak
    from hybridmap.bench.sheet import step_sheet
    from hybridmap.bench.step import hours, measure
    from hybridmap.config import override
    from hybridmap.recipes.smoke import scale_down

    options = parse(StepOptions, arguments, "bench step", "A training step beside plain PyTorch and its products alone.")
    if recipes.entry(options.recipe).kind == "exam":
        raise UserError(f"{options.recipe} is an exam, which trains nothing; hybridmap recipes lists what does")
    recipe = recipes.find(options.recipe)
    epochs = recipe.train.epochs or 1.0
    if smoke():
        recipe, options = scale_down(recipe), replace(options, batch=2, rounds=1)
    changes: dict[str, Any] = {"train.batch_size": options.batch, "train.compile": options.compile}
    if options.precision is not None:
        changes["train.precision"] = options.precision
    recipe = override(recipe, changes)
    device = _prepare(options)
    with _enough_memory(device, options.batch, "try a smaller --batch"):
        measured = measure(recipe, device, rounds=options.rounds, memory=options.memory)
    facts = {"recipe": options.recipe, "batch": options.batch, "precision": recipe.train.precision}
    _show(step_sheet(measured), facts | {"compiled": options.compile} | _machine(options, device), options)
    out = console()
    out.print(f"step / floor: {measured.over_floor:.2f}, {measured.operations / 1e9:.4g} GFLOP of products per step")
    if device.type == "cuda":
        best, whose = peak(device)
        out.print(f"{measured.rate / 1e12:.4g} TFLOP/s, {measured.rate / best:.1%} of the card's dense bf16 peak {whose}")
    else:
        out.print(f"{measured.rate / 1e9:.4g} GFLOP/s, {1 / measured.over_floor:.1%} of what its products reach by themselves")
    one, many = (hours(measured.images_per_s, epochs, options.images, devices) for devices in (1, options.devices))
    out.print(
        f"a whole run of {options.recipe}: {epochs:g} epochs of {options.images:,} images in {one:,.4g} h on this, "
        f"{many:,.4g} h on {options.devices} x this, if none waits for another"
    )
    return 0


def _prepare(options: Bench) -> torch.device:
    """The device, with the threads that were asked for, once it is certain that the results can be written.

    Raises:
        OSError: if they cannot.
    """
    if options.csv is not None:
        options.csv.open("a").close()
    torch.set_num_threads(options.threads)
    return device_named(options.device)


@contextmanager
def _enough_memory(device: torch.device, batch: int, remedy: str) -> Iterator[None]:
    """Turn the many ways of running out of memory into a sentence.

    Raises:
        UserError: if the block, or a process that it started, did.
    """
    try:
        yield
    except RuntimeError as error:
        refused = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not refused and not isinstance(error, BrokenProcessPool):  # which is what is left of a process that was killed
            raise
        raise UserError(f"{device} has too little memory for {batch} images; {remedy}") from error


def _machine(options: Bench, device: torch.device) -> dict[str, Any]:
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {capability}"
    facts = {"device": f"{device.type} ({name})", "threads": options.threads, "rounds": options.rounds}
    return facts | {"torch": torch.__version__}


def _show(sheet: Any, facts: dict[str, Any], options: Bench) -> None:
    out = console()
    out.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    out.print(sheet.table())
    if options.csv is not None:
        sheet.write(options.csv, facts)
