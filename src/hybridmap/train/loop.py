"""The training loop: one function, read from top to bottom. It knows a learner and a loader, no model and no data set."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from hybridmap.config import to_tree
from hybridmap.errors import UserError
from hybridmap.hashing import hash_ints
from hybridmap.train import checkpoint, run_dir
from hybridmap.train.distributed import World, join, restarted, unsynchronised, whole
from hybridmap.train.heartbeat import Heartbeat
from hybridmap.train.interrupt import Interrupts, exit_code
from hybridmap.train.log import RunLog, Silence, speaking
from hybridmap.train.nonfinite import Watch, first_culprit, put_back
from hybridmap.train.optim import set_lr
from hybridmap.train.recipe import Recipe
from hybridmap.train.run_dir import RunDirectory
from hybridmap.train.saver import Saver
from hybridmap.train.state import TrainState, begin_average
from hybridmap.train.weights import read_weights
from hybridmap.types import Batch

log = logging.getLogger("hybridmap.train")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PATIENCE = {"fp32": 3, "bf16": 3, "fp16": 20}
"""Non-finite steps in a row before the run goes back; in fp16 the first ones only mean that the loss is scaled too far up."""
_CLEAN_PASSES = 200
"""Batches over which a learner settles before it is used (fewer, where the run had fewer)."""
_ECHO_S = 5.0
"""Within this time of the first signal, further ones are the same one, passed on by a launcher."""
_DYING_S = 120.0
"""How long a restarted launch waits for what is left of the one before to let go of the run directory."""
_LEAST_LR_SCALE = 2.0**-6
"""A run that would reduce its learning rate further than this has another problem."""


@runtime_checkable
class Loader(Protocol):
    """What the loop asks of a loader: for each step from ``start_step`` to ``steps``, the micro-batches of this process."""

    dataset: Any
    start_step: int
    steps: int
    wait_s: float
    skipped: dict[str, str]

    def __iter__(self) -> Iterator[Iterator[Batch]]: ...


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    loader: Callable[..., Any],
    device: str = "auto",
    overwrite: bool = False,
    environment: Mapping[str, Any] | None = None,
) -> TrainState:
    """Train by ``recipe`` in the run directory ``out``; continue where an earlier launch of the same recipe stopped.

    Args:
        recipe: what to compute.
        out: the run directory; made if it is missing.
        loader: makes a :class:`Loader`, from ``recipe.data`` and the keywords ``batch_size``, ``steps``, ``accumulate``,
            ``rank``, ``world``, ``seed``, ``device``.
        device: "auto", or as torch names it. Under ``torchrun`` every process takes its own GPU.
        overwrite: start anew in a directory that holds a run.
        environment: further facts for ``environment.json``, such as the kernels in use.

    Raises:
        UserError: for whatever a user can mend; the last checkpoint is intact.
        SystemExit: after SIGTERM (code 0) or SIGINT (130), once a checkpoint is written; with code 75 where another process is
            gone, or nothing moves any more.
    """
    with ExitStack() as opened:
        # ------------------------------------------------------------------------------------------------------------- setup
        config, seed = recipe.train, recipe.seed
        world = opened.enter_context(join(device))
        interrupts = opened.enter_context(Interrupts(echo_s=_ECHO_S if world.size > 1 else 0.0))  # answered at the first step
        opened.enter_context(reproducible(world.device, strict=config.deterministic))
        again = restarted()
        anew, patience = overwrite and not again, _DYING_S if again else 0.0
        run = world.on_main(lambda: opened.enter_context(run_dir.hold(out, recipe, overwrite=anew, wait_s=patience)))
        told = opened.enter_context(speaking(run if world.is_main else None, recipe))
        if world.on_main(run.is_finished):
            log.info("%s is finished: nothing is left to do (--overwrite starts anew)", run.path)
            return _finished(recipe, run, world)
        mark = opened.enter_context(Heartbeat(run.path, world, config.patience))
        facts = run_dir.environment(world.device, world.size) | dict(environment or {})
        world.on_main(lambda: run.write_json("environment.json", facts))

        # ------------------------------------------------------------------------------------------------------------- build
        if config.cuda_graphs and world.device.type != "cuda":
            raise UserError(f"train.cuda_graphs needs a CUDA device, and this run is on {world.device.type}; leave it off")
        data: Loader = loader(
            recipe.data,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            steps=0,  # not known before the data set is open; set below
            rank=world.rank,
            world=world.size,
            seed=seed,
            device=world.device,
        )
        steps, epochs = config.length(len(data.dataset))
        resuming = world.on_main(lambda: bool(run.checkpoints.paths()))
        learner = build_learner(recipe, fresh=not resuming).to(world.device)
        optim = recipe.optim.build()
        rules = optim.rules(learner)  # read off the parameters before sharding replaces them
        model = world.wrap(learner, config.parallel)
        optimizer = optim.optimizer(learner.named_parameters(), rules)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        scaler = GradScaler(world.device.type, enabled=config.precision == "fp16")
        schedule, highest_lr = recipe.schedule.build(), optim.lr(config.batch_size)
        state = TrainState(learner, optimizer, scaler, begin_average(learner) if config.ema else None)

        def forward(model: nn.Module, batch: Batch, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
            torch.manual_seed(hash_ints(seed, step, micro, world.rank))  # for what is drawn per batch, such as drop path
            if config.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            if config.channels_last and batch.inputs.ndim == 4:
                batch = replace(batch, inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
            with torch.autocast(world.device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
                return model(batch)

        def clean_batches() -> Iterator[Batch]:
            """Batches of the run's beginning, in portions as large as those of a step but all of them in this process."""
            accumulate = config.accumulate * world.size
            few = min(steps, math.ceil(_CLEAN_PASSES / accumulate))
            place = {"rank": 0, "world": 1, "seed": seed, "device": world.device}
            for portions in loader(recipe.data, batch_size=config.batch_size, accumulate=accumulate, steps=few, **place):
                yield from portions

        # ------------------------------------------------------------------------------------------------------------ resume
        if resuming:
            _restore(state, run, world)
            log.info("continuing %s at step %d of %d", run.path, state.step, steps)
        else:
            size = sum(value.numel() for value in trained)
            passes = steps * config.batch_size / len(data.dataset)
            log.info("training %s parameters for %d steps (%.4g epochs) in %s", f"{size:,}", steps, passes, run.path)
        log.info("%s; %s", config.tell_batch(world.size), optim.tell_lr(config.batch_size))
        eval_every = config.exam_interval(steps, epochs)
        save_every = config.checkpoint_every or min(math.ceil(steps / 20), 1000)
        saved_at = state.step if resuming else None
        examined_at = state.step if state.results or state.step < steps else None

        # -------------------------------------------------------------------------------------------------------------- loop
        watch, stream = Watch(state), _Stream(data)
        saver = opened.enter_context(Saver(run.checkpoints, world, sharded=world.size > 1 and config.parallel == "fsdp"))
        opened.callback(lambda: run.note_skipped(data.skipped) if world.is_main else None)
        opened.callback(stream.close)
        stream.open(state.step, steps)
        told.begin(state.step, steps)
        while True:
            # once in a while: hear from the device how the last step went, before anything is done with its outcome
            done = state.step == steps
            asked = watch.asked if world.size > 1 else interrupts.received is not None
            exam_due = bool(recipe.exams) and state.step != examined_at and (done or _due(state.step, eval_every))
            save_due = state.step != saved_at and (done or _due(state.step, save_every) or (exam_due and config.best != "loss"))
            record = watch.receive() if done or asked or exam_due or save_due else None

            # once in a while: hear that the last checkpoint could not be written
            if world.size == 1 and saver.failed:
                saver.wait()

            # once in a while: go back, after too many steps in a row that were not finite
            if state.bad_in_row >= _PATIENCE[config.precision]:
                step = state.step - 1

                def replay(step: int = step) -> Iterator[Tensor]:
                    stream.open(step, step + 1)
                    for micro, batch in enumerate(stream.next()):
                        yield forward(unsynchronised(model), batch, step, micro)[0]

                mark("going back", state.step)
                _go_back(state, run, world, saver, first_culprit(learner, replay))
                watch.take_losses()
                stream.open(state.step, steps)
                told.begin(state.step, steps)
                saved_at = examined_at = state.step
                continue

            # once in a while: examine, write down, save, stop
            if exam_due:
                mark("an exam", state.step)
                state.results = _examine(recipe, state, world, told, clean_batches)
                examined_at = state.step
            if record is not None:
                told.write(record | (state.results if exam_due else {}))
            if save_due or asked:
                mark("saving", state.step)
            if save_due and (done or not state.bad_in_row):
                score = _score(config.best, state, exam_due, watch)
                saver.save(state, state.record() | {"score": score, "extra": False})
                saved_at = state.step
            if asked:
                if saved_at != state.step and not state.bad_in_row:
                    saver.save(state, state.record() | {"score": None, "extra": True})
                saver.wait()
                log.info("stopped at step %d of %d; the same command continues the run", state.step, steps)
                raise SystemExit(exit_code(max(world.gather(interrupts.received or 0))))
            if done:
                saver.wait()
                break

            # one step: gradients of all micro-batches, then news of the step before, then the optimiser
            began = time.perf_counter()
            lr = state.lr_scale * schedule(epochs * state.step / steps, epochs, highest_lr)
            set_lr(optimizer, lr)
            optimizer.zero_grad()
            if hasattr(learner, "follow"):
                learner.follow(state.ema, state.step / steps)  # type: ignore[operator]
            before = [buffer.clone() for buffer in learner.buffers()]
            portions: list[dict[str, Tensor]] = []
            mark("waiting for data", state.step)
            for micro, batch in enumerate(stream.next()):
                mark("forward and backward", state.step)
                with world.accumulating(model, last=micro == config.accumulate - 1):
                    total, parts = forward(model, batch, state.step, micro)
                    scaler.scale(total / config.accumulate).backward()
                portions.append({"loss": total.detach()} | {f"loss_{name}": part.detach() for name, part in parts.items()})
                mark("waiting for data", state.step)
            mark("exchanging gradients and numbers", state.step)
            if (record := watch.receive()) is not None:
                told.write(record)
            if state.bad_in_row >= _PATIENCE[config.precision]:
                continue
            scaler.unscale_(optimizer)
            norm = _clip(trained, config.clip)
            seen = _mean_over_batch(portions, world, interrupts.received is not None)
            bad = ~(seen["loss"].isfinite() & norm.isfinite())
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # read on the device: a bad step changes nothing
            optimizer.step()
            scaler.update()
            put_back(learner.buffers(), before, bad)
            if config.ema is not None:
                state.average(config.ema)
            state.step += 1
            took = time.perf_counter() - began
            pace = {"images_per_s": config.batch_size / took, "data_wait": min(data.wait_s / took, 1.0)}
            if world.device.type == "cuda":
                pace["memory_gb"] = torch.cuda.max_memory_allocated(world.device) / 2**30
                torch.cuda.reset_peak_memory_stats(world.device)
            if state.skipped_steps:
                pace["skipped_steps"] = float(state.skipped_steps)
            watch.send(seen | {"grad_norm": norm, "skipped": bad}, {"step": state.step, "lr": lr} | pace)

        # ------------------------------------------------------------------------------------------------------------ finish
        mark("finishing", state.step)
        skipped = {path: reason for images in world.gather(data.skipped) for path, reason in images.items()}
        ending = {"steps": steps, "skipped_steps": state.skipped_steps, "lr_scale": state.lr_scale, "exams": state.results}
        weights = state.weights(keep=world.is_main)
        world.on_main(lambda: run.note_skipped(skipped))
        world.on_main(lambda: run.write_json("summary.json", ending))
        world.on_main(lambda: _settle(learner, recipe, weights, world, clean_batches))
        world.on_main(lambda: checkpoint.write(run.final, weights, _description(recipe)))
        log.info("finished after %d steps: %s", steps, run.final)
        return state


class _Stream:
    """The steps of a loader, which can be opened anew at another step."""

    def __init__(self, data: Loader) -> None:
        self._data = data
        self._steps: Any = iter(())

    def open(self, start_step: int, steps: int) -> None:
        self.close()
        self._data.start_step, self._data.steps = start_step, steps
        self._steps = iter(self._data)

    def next(self) -> Iterator[Batch]:
        return next(self._steps)

    def close(self) -> None:
        """End the processes that prepare data, where there are any."""
        if hasattr(self._steps, "close"):
            self._steps.close()


@contextmanager
def reproducible(device: torch.device, *, strict: bool) -> Iterator[None]:
    """Deterministic algorithms (on a CPU always, elsewhere if ``strict``); leaves the global generators as they were."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS wants to see before it starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if strict or device.type == "cpu":
                torch.use_deterministic_algorithms(True, warn_only=not strict)
                deterministic.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = fill


def build_learner(recipe: Recipe, *, fresh: bool) -> nn.Module:
    """The learner on the host, as the first step finds it; one that is to be restored is not ``fresh``."""
    torch.manual_seed(recipe.seed)
    learner = recipe.learner.build().train()
    if fresh and recipe.init_from is not None:
        weights, _ = read_weights(recipe.init_from)
        log.info("weights from %s: %s", recipe.init_from, learner.initialise(weights))
    if recipe.train.checkpoint_activations:
        switch = getattr(getattr(learner, "backbone", None), "set_grad_checkpointing", None)
        if switch is None:
            raise UserError(
                f"train.checkpoint_activations needs a backbone that can, and {type(learner).__name__} has none; leave it off"
            )
        switch(every=recipe.train.checkpoint_blocks)
    if recipe.train.channels_last:
        learner = learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.train.compile:
        name = "step" if hasattr(learner, "step") else "forward"
        mode = "reduce-overhead" if recipe.train.cuda_graphs else None
        setattr(learner, name, torch.compile(getattr(learner, name), mode=mode))
    return learner


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _clip(parameters: list[nn.Parameter], largest: float | None) -> Tensor:
    """The norm of the gradient, a scalar on the device; the gradient is scaled down to ``largest`` where it is longer."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return whole(norm)


def _mean_over_batch(portions: list[dict[str, Tensor]], world: World, asked: bool) -> dict[str, Tensor]:
    """The numbers of a step, averaged over its micro-batches and over all processes, on the device.

    ``asked`` says whether this process was told to stop; on average it was not if and only if no process was.
    """
    names = list(portions[0])
    rows = torch.stack([torch.stack([portion[name].float() for name in names]) for portion in portions])
    values = world.mean(torch.cat([rows.mean(0), rows.new_full((1,), float(asked))]))
    return dict(zip([*names, "asked"], values.unbind(), strict=True))


def _settle(
    learner: nn.Module,
    recipe: Recipe,
    weights: dict[str, Tensor],
    world: World,
    batches: Callable[[], Iterator[Batch]],
) -> None:
    """Let a copy of the learner with these weights settle, if it can, and take over what that changes: its buffers.

    They follow from weights and data, so a run that is killed here and continued ends with the same bytes. Checkpoints keep
    the statistics of training.
    """
    if not hasattr(learner, "settle") or next(learner.buffers(), None) is None:
        return
    copy: Any = recipe.learner.build()
    copy.load_state_dict(weights)
    copy.to(world.device).settle(batches())
    weights.update({name: value.cpu() for name, value in copy.named_buffers() if name in weights})


def _examine(
    recipe: Recipe, state: TrainState, world: World, told: RunLog | Silence, batches: Callable[[], Iterator[Batch]]
) -> dict[str, float]:
    """The numbers of all exams, by ``exam/number``; pictures that they draw are kept. They are taken by a copy, so that nothing
    they do can reach the run."""
    weights = state.weights(keep=world.is_main)

    def sit() -> dict[str, float]:
        _settle(state.learner, recipe, weights, world, batches)
        learner = recipe.learner.build()
        learner.load_state_dict(weights)
        learner.to(world.device).eval()
        results = {name: exam.build()(learner, world.device) for name, exam in recipe.exams.items()}
        found = {f"{name}/{number}": value for name, result in results.items() for number, value in result.items()}
        for name, value in found.items():
            if isinstance(value, Image.Image):
                told.picture(name, value, state.step)
        return {name: float(value) for name, value in found.items() if not isinstance(value, Image.Image)}

    return world.on_main(sit)


def _score(best: str, state: TrainState, examined: bool, watch: Watch) -> float | None:
    """How good a checkpoint is (more is better), or None where there is nothing to judge by."""
    losses = watch.take_losses()
    if best == "loss":
        return -sum(losses) / len(losses) if losses else None
    if not examined:
        return None
    if best not in state.results:
        raise UserError(f"train.best must be 'loss' or one of {', '.join(sorted(state.results))}, got {best!r}")
    return -state.results[best] if best.endswith(("loss", "error")) else state.results[best]


def _restore(state: TrainState, run: RunDirectory, world: World, *, extra: bool = True) -> dict[str, Any]:
    """Continue from the newest checkpoint that is whole; what was written after it is going to be written again.

    Raises:
        UserError: if there are checkpoints, and all are broken.
    """
    path = world.on_main(lambda: run.checkpoints.newest(extra=extra))
    if path is None:
        raise UserError(f"no checkpoint in {run.checkpoints.folder} is whole; start anew with --overwrite")
    tensors, record = checkpoint.read(path, ours=True)
    state.restore(tensors, record)
    world.on_main(lambda: run.checkpoints.drop_after(state.step))
    world.on_main(lambda: run.cut_back(state.step))
    lines = world.on_main(run.lines)
    state.results = {name: value for name, value in (lines[-1] if lines else {}).items() if "/" in name}
    if lines and lines[-1]["step"] != state.step:
        state.results = {}
    return record


def _go_back(state: TrainState, run: RunDirectory, world: World, saver: Saver, culprit: str | None) -> None:
    """Return to the last checkpoint with half the learning rate, and save that, so that a killed run remembers it too.

    Raises:
        UserError: if that has been tried often enough.
    """
    culprit = next((found for found in world.gather(culprit) if found), "nothing in particular (the replay was finite)")
    row, skipped, lr_scale = state.bad_in_row, state.skipped_steps, state.lr_scale / 2
    at = state.step
    if lr_scale < _LEAST_LR_SCALE:
        raise UserError(
            f"the loss is not finite around step {at}, even with {state.lr_scale:g} of the learning rate, and first of all "
            f"{culprit}: lower optim.lr, set train.clip, or look at the data"
        )
    saver.wait()
    record = _restore(state, run, world, extra=False)
    state.skipped_steps, state.lr_scale, state.bad_in_row = skipped, lr_scale, 0
    log.warning(
        "%d steps in a row were not finite, first of all %s; back to step %d with %g of the learning rate",
        row,
        culprit,
        state.step,
        lr_scale,
    )
    saver.save(state, record | state.record())


def _finished(recipe: Recipe, run: RunDirectory, world: World) -> TrainState:
    """The state of a run that ended in an earlier launch."""
    weights, _ = checkpoint.read(run.final, ours=True)
    learner = recipe.learner.build()
    learner.load_state_dict(weights)
    learner.to(world.device)
    optim = recipe.optim.build()
    optimizer = optim.optimizer(learner.named_parameters(), optim.rules(learner))
    ending = run.read_json("summary.json")
    return TrainState(
        learner,
        optimizer,
        GradScaler(world.device.type, enabled=False),
        step=ending.get("steps", 0),
        lr_scale=ending.get("lr_scale", 1.0),
        skipped_steps=ending.get("skipped_steps", 0),
        results=ending.get("exams", {}),
    )


def _description(recipe: Recipe) -> dict[str, Any]:
    """What ``final.safetensors`` says about itself: how to build the learner, and how its inputs are prepared."""
    data = to_tree(recipe.data)
    return {
        "kind": "weights",
        "format": 1,
        "learner": to_tree(recipe.learner),
        "data": {name: data[name] for name in ("size", "mean", "std") if name in data},
        "average": recipe.train.ema is not None,
    }
