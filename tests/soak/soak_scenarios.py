"""What is done to a run, and what it promises then: one function each, used by ``make soak`` and by the tests.

Every function disturbs real runs of ``hybridmap pretrain map-smoke`` and looks at nothing but exit codes, what was said, and
the files that are left. The first paragraph of its docstring says what is done; the second, what is promised. A promise that
does not hold is an AssertionError.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from soak_launch import EVERY, STEPS, Launch, Nursery, checkpoints, free_port, metrics, wait_until

IMAGES = 24
"""Pictures in the folder: three steps of eight are an epoch."""
PLACES = ("gradient", "activation", "batch")
"""Where NaN can be put."""
POISONED = 9
"""The step, counted from 0, at which NaN appears."""


class NotHere(Exception):
    """This machine cannot be disturbed in this way; the words say why."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A promise that was kept, and how."""

    end: str
    """"went on", "stopped, then continued" by the same command, or "stopped"."""
    codes: list[int]
    """The exit code of every launch, minus the signal where one ended it."""
    same: bool | None = None
    """Whether the finished run has the bytes and the losses of the undisturbed one; None where they cannot be the same."""
    said: str = ""
    """A sentence of the console."""


@dataclass
class Home:
    """What rounds share: the pictures, and the undisturbed runs that others are compared with."""

    place: Path
    nursery: Nursery = field(default_factory=Nursery)
    runs: dict[str, Path] = field(default_factory=dict)
    """Undisturbed runs by what is particular about them."""

    @property
    def photos(self) -> Path:
        """A folder of pictures that nobody changes."""
        folder = self.place / "photos"
        if not folder.exists():
            make_photos(folder)
        return folder


def make_photos(folder: Path) -> None:
    """Two classes of twelve pictures with different stripes."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:40, :48]
    for name, wave in {"rows": y, "columns": x}.items():
        (folder / name).mkdir(parents=True)
        for i in range(IMAGES // 2):
            stripes = (np.sin(wave * (0.3 + 0.05 * i)) * 0.5 + 0.5) * 255
            Image.fromarray(np.stack([stripes, stripes[::-1], stripes * 0.5], -1).astype(np.uint8)).save(
                folder / name / f"{i:02}.png"
            )


@dataclass
class Scene:
    """One round of one scenario."""

    home: Home
    place: Path
    """An empty folder."""
    random: Random
    anew: bool = False
    """Start every process with all its imports (and several by torchrun), not forked from one that has them."""

    @property
    def out(self) -> Path:
        """The run directory of most scenarios."""
        return self.place / "run"

    def launch(
        self,
        *,
        flags: Sequence[str] = (),
        out: Path | None = None,
        photos: Path | None = None,
        workers: int | None = None,
        processes: int = 1,
        faults: dict[str, Any] | None = None,
        limit: int | None = None,
        anew: bool | None = None,
        report: bool = False,
    ) -> Launch:
        """Start the command: the same run for the same ``out`` and ``photos``, whatever the rest. Unless it is started
        ``anew``, it writes a report at its end only where one is asked for."""
        out = out or self.out
        anew = self.anew if anew is None else anew
        if not anew and not report:
            faults = (faults or {}) | {"no_report": True}
        workers = self.random.choice([0, 2]) if workers is None else workers
        words = ["pretrain", "map-smoke", "--data.root", str(photos or self.home.photos), "--out", str(out)]
        words += ["--device", "cpu", "--data.workers", str(workers), "--train.steps", str(STEPS)]
        words += ["--train.checkpoint-every", str(EVERY), "--import", "soak_faults"]
        words += [self.random.choice(["--train.tensorboard", "--train.no-tensorboard"]), *flags]
        environment = {"SOAK_FAULTS": json.dumps(faults or {}), "GLOO_SOCKET_IFNAME": "lo"}
        output = self.place / f"console-{time.monotonic_ns()}.txt"
        nursery = self.home.nursery
        if anew:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            start = [*(torchrun if processes > 1 else []), "-m", "hybridmap", *words]
            return Launch(out, output, [nursery.start(start, output, environment, limit)], processes > 1)
        places = [{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes} for rank in range(processes)]
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} if processes > 1 else {}
        started = []
        for rank in places:
            added = {name: str(value) for name, value in (rank | port).items()} if processes > 1 else {}
            started.append(nursery.fork(words, output, environment | added, limit))
        return Launch(out, output, started, False)

    def undisturbed(self, processes: int = 1, **how: Any) -> Path:
        """The run that nothing happened to; made once, in the same way whoever needs it first."""
        name = json.dumps([processes, how], default=str)
        if name not in self.home.runs:
            scene = Scene(self.home, self.home.place / f"undisturbed-{len(self.home.runs)}", Random(0))
            scene.place.mkdir()
            scene.finish(processes=processes, **how)
            self.home.runs[name] = scene.out
        return self.home.runs[name]

    def killed(self) -> Path:
        """The run directory of a run that was killed when it had steps for three checkpoints or more."""
        launch = self.launch(anew=False, faults={"slow_batch": 0.01}, workers=0)
        target = self.random.randint(3 * EVERY, STEPS - 2)
        launch.until(lambda: target in launch.steps())
        assert launch.kill(everything=True) == -signal.SIGKILL
        return self.out

    def is_same(self, *, processes: int = 1, out: Path | None = None, reference: Path | None = None) -> bool:
        """Whether the finished run cannot be told from the undisturbed one: bytes, a line for every step, the same losses,
        nothing left half-written."""
        out, reference = out or self.out, reference or self.undisturbed(processes)
        assert (out / "final.safetensors").read_bytes() == (reference / "final.safetensors").read_bytes(), "other bytes"
        found, wanted = ([(line["step"], line["loss"]) for line in metrics(run)] for run in (out, reference))
        assert found == wanted, f"other lines in metrics.jsonl: {found} instead of {wanted}"
        left = [path.name for path in out.rglob(".*") if path.name != ".lock"]
        assert not left, f"left half-written: {left}"
        return True

    def finish(self, **how: Any) -> int:
        """The same command again, undisturbed, to its end; forked, unless asked otherwise."""
        launch = self.launch(**({"anew": False} | how))
        code = launch.wait()
        assert code == 0, f"the run could not be continued: {launch.told()[-3000:]}"
        return code

    def moment(self, launch: Launch) -> None:
        """Wait for a random moment of a launch: some time, or soon after some step."""
        if self.random.random() < 0.4:
            time.sleep(self.random.uniform(0, 6 if self.anew else 0.8))
        else:
            step = self.random.randint(1, STEPS - 1)
            launch.until(lambda: max(launch.steps(), default=0) >= step)
            time.sleep(self.random.uniform(0, 0.02))

    @contextmanager
    def small_disk(self, size: int) -> Iterator[Path]:
        """A file system of its own with ``size`` bytes."""
        place = self.place / "disk"
        place.mkdir()
        mounted = sys.platform == "linux" and not mount("-t", "tmpfs", "-o", f"size={size}", "none", place)
        if not mounted:
            raise NotHere("mounting a small file system needs the rights to do so")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


def mount(*words: str | Path) -> int:
    """The exit code of mount."""
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode


# --------------------------------------------------------------------------------------------------------------- kill -9


def killed_at_any_moment(scene: Scene) -> Outcome:
    """kill -9, up to three times in a row, at random times (imports, set-up, steps, report) or soon after random steps; the
    process alone, or with its workers.

    The same command continues the run, to the same bytes.
    """
    codes = []
    for _ in range(scene.random.randint(1, 3)):
        launch = scene.launch(faults={"slow_batch": 0.01})
        scene.moment(launch)
        codes.append(launch.kill(everything=scene.random.random() < 0.5))
        assert codes[-1] in (0, -signal.SIGKILL), launch.told()
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same())


def killed_while_it_starts(scene: Scene) -> Outcome:
    """kill -9 at a random time before the first step is written down, in a process that has everything still to import.

    The same command continues the run, to the same bytes.
    """
    launch = scene.launch(anew=True)
    limit = time.monotonic() + scene.random.uniform(0, 6)
    launch.until(lambda: time.monotonic() > limit or launch.steps())
    codes = [launch.kill(everything=True)]
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same())


def killed_while_it_saves(scene: Scene) -> Outcome:
    """kill -9 while a checkpoint is written: as soon as its temporary file is there, or a little later (every fsync takes
    50 ms).

    The same command continues the run from this checkpoint or the one before, to the same bytes.
    """
    launch = scene.launch(faults={"slow_sync": 0.05}, workers=0)
    step = scene.random.randrange(0, STEPS + 1, EVERY)
    folder = scene.out / "checkpoints"

    def writing() -> bool:
        reached = max([*launch.steps(), 0])
        return reached >= step and folder.exists() and any(path.name.startswith(".") for path in list_now(folder))

    launch.until(writing)
    time.sleep(scene.random.uniform(0, 0.12))
    codes = [launch.kill(everything=True)]
    assert codes == [-signal.SIGKILL], launch.told()
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same())


def killed_while_it_finishes(scene: Scene) -> Outcome:
    """kill -9 between the last step and the end of the report: while the last checkpoint, final.safetensors, summary.json or
    the report is written (every fsync takes 50 ms).

    The same command finishes the run, to the same bytes, and writes the report.
    """
    launch = scene.launch(faults={"slow_sync": 0.05}, workers=0, report=True)
    launch.until(lambda: STEPS in launch.steps())
    time.sleep(scene.random.uniform(0, 2.0 if scene.random.random() < 0.3 else 0.6))
    codes = [launch.kill(everything=True)]
    codes.append(scene.finish(report=True))
    assert (scene.out / "report.html").exists()
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same())


def killed_rank(scene: Scene) -> Outcome:
    """kill -9 of a random one of two processes that train together, at a random moment.

    Both end, the launcher's exit code is not 0, and the same command continues the run, to the same bytes.
    """
    launch = scene.launch(processes=2, faults={"slow_batch": 0.02})
    launch.until(lambda: len(launch.ranks()) == 2)
    scene.moment(launch)
    ranks = launch.ranks()
    if len(ranks) == 2 and launch.running():
        os.kill(scene.random.choice(ranks), signal.SIGKILL)
    codes = [launch.wait()]
    assert codes[0] != 0 or (scene.out / "final.safetensors").exists()
    codes.append(scene.finish(processes=2))
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(processes=2))


def killed_ranks(scene: Scene) -> Outcome:
    """kill -9 of both of two processes that train together, and of their launcher, at a random moment.

    The same command continues the run, to the same bytes.
    """
    launch = scene.launch(processes=2, faults={"slow_batch": 0.02})
    launch.until(lambda: len(launch.ranks()) == 2)
    scene.moment(launch)
    ranks = launch.ranks()
    codes = [launch.kill(everything=True)]
    for pid in ranks:
        wait_until(lambda pid=pid: not runs(pid) or os.kill(pid, signal.SIGKILL))
    codes.append(scene.finish(processes=2))
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(processes=2))


def killed_worker(scene: Scene) -> Outcome:
    """kill -9 of a random one of the processes that prepare images (as the system does when memory runs out), up to three
    times.

    The run goes on with new ones, to the same bytes.
    """
    launch = scene.launch(workers=2, faults={"slow_image": 0.004})
    for _ in range(scene.random.randint(1, 3)):
        launch.until(launch.workers)
        time.sleep(scene.random.uniform(0, 0.3))
        if found := launch.workers():
            with suppress(ProcessLookupError):
                os.kill(scene.random.choice(found), signal.SIGKILL)
    code = launch.wait()
    assert code == 0, launch.told()[-3000:]
    said = launch.said("a process that prepared images") if "a process that prepared images" in launch.told() else ""
    return Outcome(end="went on", codes=[code], same=scene.is_same(), said=said)


# --------------------------------------------------------------------------------------------------------------- signals


def _asked_to_stop(scene: Scene, number: signal.Signals, promised: int) -> Outcome:
    launch = scene.launch(faults={"slow_batch": 0.02})
    launch.until(lambda: (scene.out / "log.txt").exists())
    if scene.random.random() < 0.3:
        time.sleep(scene.random.uniform(0, 0.3))
    else:
        step = scene.random.randint(1, STEPS - 3)
        launch.until(lambda: max(launch.steps(), default=0) >= step)
    os.kill(launch.pid, number)
    codes = [launch.wait()]
    assert codes == [promised], launch.told()[-3000:]
    said = launch.said("stopped at step")
    last = max(launch.steps(), default=0)
    assert int(said.split()[3]) == last
    assert checkpoints(scene.out)[-1].name.startswith(f"step-{last:08d}"), "a step is lost"
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(), said=said)


def asked_by_sigterm(scene: Scene) -> Outcome:
    """SIGTERM at a random moment between the opening of the run directory and the last steps.

    A checkpoint of the last step is written, the exit code is 0, and the same command continues the run, to the same bytes.
    """
    return _asked_to_stop(scene, signal.SIGTERM, 0)


def asked_by_sigint(scene: Scene) -> Outcome:
    """SIGINT (Ctrl-C) at a random moment between the opening of the run directory and the last steps.

    A checkpoint of the last step is written, the exit code is 130, and the same command continues the run, to the same bytes.
    """
    return _asked_to_stop(scene, signal.SIGINT, 128 + signal.SIGINT)


def asked_twice(scene: Scene) -> Outcome:
    """Two signals (SIGTERM or SIGINT), a fifth of a second apart, while every batch takes three seconds.

    The second ends the process at once with exit code 128 + its number; the same command continues the run, to the same bytes.
    """
    launch = scene.launch(faults={"slow_batch": 3.0}, workers=0)
    launch.until(lambda: checkpoints(scene.out))
    time.sleep(0.1)
    for _ in range(2):
        time.sleep(0.2)
        number = scene.random.choice([signal.SIGTERM, signal.SIGINT])
        os.kill(launch.pid, number)
        began = time.monotonic()
    codes = [launch.wait()]
    assert codes == [128 + number], launch.told()
    assert time.monotonic() - began < 2, "it waited for the batch"
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same())


def asked_rank(scene: Scene) -> Outcome:
    """SIGTERM to a random one of two processes that train together, at a random moment after the first step.

    Both stop together with exit code 0 and a checkpoint; the same command continues the run, to the same bytes.
    """
    launch = scene.launch(processes=2, faults={"slow_batch": 0.03})
    launch.until(lambda: launch.steps())
    time.sleep(scene.random.uniform(0, 0.5))
    ranks = launch.ranks()
    if len(ranks) == 2:
        os.kill(scene.random.choice(ranks), signal.SIGTERM)
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    said = "" if (scene.out / "final.safetensors").exists() else launch.said("stopped at step")
    codes.append(scene.finish(processes=2))
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(processes=2), said=said)


def asked_all(scene: Scene) -> Outcome:
    """SIGTERM or SIGINT to a process and its workers at the same time (as Ctrl-C in a terminal does), or SIGTERM to all of two
    processes that train together (torchrun passes it on), at a random moment after the first step.

    A checkpoint of the last step is written, the exit code is 0 or 130 (torchrun's own is 1), and the same command continues
    the run, to the same bytes.
    """
    processes = scene.random.choice([1, 2])
    number = signal.SIGTERM if processes == 2 else scene.random.choice([signal.SIGTERM, signal.SIGINT])
    launch = scene.launch(processes=processes, workers=2, faults={"slow_batch": 0.05})
    launch.until(launch.steps)
    time.sleep(scene.random.uniform(0, 0.7))
    launch.signal_all(number)
    codes = [launch.wait()]
    promised = 1 if scene.anew and processes == 2 else 0 if number == signal.SIGTERM else 130
    assert codes == [promised], launch.told()[-3000:]
    said = launch.said("stopped at step")
    assert checkpoints(scene.out)[-1].name.startswith(f"step-{max(launch.steps()):08d}"), "a step is lost"
    codes.append(scene.finish(processes=processes))
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(processes=processes), said=said)


# ------------------------------------------------------------------------------------------------- files and directories


def disk_full(scene: Scene) -> Outcome:
    """The run directory lies on a file system of its own (tmpfs) that is too small, by a random amount, or that another program
    fills at a random moment.

    The run stops with exit code 2 and a sentence that names the file; once there is room, the same command continues it, to the
    same bytes.
    """
    fills = scene.random.random() < 0.5
    with scene.small_disk(
        2**25 if fills else scene.random.choice([2**14, 2**17, 2**21]) + 4096 * scene.random.randrange(300)
    ) as disk:
        out, filler = disk / "run", disk / "filler"
        launch = scene.launch(out=out, faults={"slow_batch": 0.01})
        if fills:
            scene.moment(launch)
            with filler.open("ab", buffering=0) as file:
                while launch.running():
                    with suppress(OSError):
                        file.write(bytes(4096))
        codes = [launch.wait()]
        said = ""
        if codes != [0]:
            assert codes == [2], launch.told()[-3000:]
            said = launch.said("there is no space left to write")
            assert "Traceback" not in launch.told()
        filler.unlink(missing_ok=True)
        assert mount("-o", f"remount,size={2**26}", disk) == 0
        codes.append(scene.finish(out=out))
        same = scene.is_same(out=out)
    return Outcome(end="stopped, then continued", codes=codes, same=same, said=said)


def file_too_large(scene: Scene) -> Outcome:
    """No file may grow beyond a random size (RLIMIT_FSIZE), so that writing metrics, log or a checkpoint fails.

    The run stops with exit code 2 and a sentence that names the file; without the limit the same command continues it, to the
    same bytes.
    """
    limit = scene.random.choice([scene.random.randrange(1500, 6000), scene.random.randrange(6000, 900_000)])
    launch = scene.launch(limit=limit)
    codes = [launch.wait()]
    assert codes == [2], launch.told()[-3000:]
    said = launch.said("cannot write")
    assert "Traceback" not in launch.told()
    codes.append(scene.finish())
    return Outcome(end="stopped, then continued", codes=codes, same=scene.is_same(), said=said)


def directory_deleted(scene: Scene) -> Outcome:
    """The run directory is deleted at a random moment after the first checkpoint.

    The run stops with exit code 2 and a sentence; the same command begins it again, to the same bytes.
    """
    rarely = ["--train.log-every", str(STEPS)] if scene.random.random() < 0.5 else []
    launch = scene.launch(flags=rarely, faults={"slow_batch": 0.02})
    launch.until(lambda: checkpoints(scene.out))
    time.sleep(scene.random.uniform(0, 0.3))
    while scene.out.exists():  # a file that is written meanwhile keeps its directory
        shutil.rmtree(scene.out, ignore_errors=True)
    codes = [launch.wait()]
    assert codes == [2], launch.told()[-3000:]
    said = launch.said("cannot write")
    assert "Traceback" not in launch.told()
    codes.append(scene.finish())
    return Outcome(end="stopped, then begun again", codes=codes, same=scene.is_same(), said=said)


def directory_read_only(scene: Scene) -> Outcome:
    """A killed run lies where nothing may be written any more.

    The command stops with exit code 2 and a sentence; once it may write, it continues the run, to the same bytes.
    """
    with scene.small_disk(2**25) as disk:
        out = disk / "run"
        shutil.copytree(scene.killed(), out)
        assert mount("-o", "remount,ro", disk) == 0
        launch = scene.launch(out=out)
        codes = [launch.wait()]
        assert codes == [2], launch.told()[-3000:]
        said = launch.said("cannot write")
        assert "Traceback" not in launch.told()
        assert mount("-o", "remount,rw", disk) == 0
        codes.append(scene.finish(out=out))
        same = scene.is_same(out=out)
    return Outcome(end="stopped, then continued", codes=codes, same=same, said=said)


def launched_twice(scene: Scene) -> Outcome:
    """The same command is launched while it runs already.

    The second launch stops with exit code 2 and a sentence; the first goes on, to the same bytes.
    """
    first = scene.launch(faults={"slow_batch": 0.1})
    first.until(lambda: (scene.out / "log.txt").exists())
    second = scene.launch(anew=False)
    codes = [second.wait()]
    assert codes == [2], second.told()[-3000:]
    codes.append(first.wait())
    said = second.said("another process is training in")
    return Outcome(end="went on", codes=codes, same=scene.is_same(), said=said)


# ----------------------------------------------------------------------------------------------------- broken checkpoints


def _break(scene: Scene, change: Callable[[bytes], bytes]) -> Outcome:
    newest = checkpoints(scene.killed())[-1]
    file = newest if newest.is_file() else scene.random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    file.write_bytes(change(file.read_bytes()))
    launch = scene.launch()
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    said = launch.said(f"{scene.out}/checkpoints/{newest.name}.* is used")
    return Outcome(end="went on", codes=codes, same=scene.is_same(), said=said)


def checkpoint_truncated(scene: Scene) -> Outcome:
    """The newest checkpoint of a killed run is cut off at a random place.

    The command names it, continues from the checkpoint before, and the bytes are the same.
    """
    return _break(scene, lambda content: content[: scene.random.randrange(len(content))])


def checkpoint_flipped(scene: Scene) -> Outcome:
    """One bit of the newest checkpoint of a killed run is turned over: of its header in half of the rounds, else anywhere.

    The command names it, continues from the checkpoint before, and the bytes are the same.
    """

    def flip(content: bytes) -> bytes:
        header = min(8 + int.from_bytes(content[:8], "little"), len(content))
        place = scene.random.randrange(header if scene.random.random() < 0.5 else len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << scene.random.randrange(8)
        return bytes(changed)

    return _break(scene, flip)


def shard_damaged(scene: Scene) -> Outcome:
    """Two processes share parameters and optimiser (FSDP) and are killed; a random file of the newest checkpoint, which is a
    directory, is cut off, deleted, or one bit of it turned over.

    The command names it, continues from the checkpoint before, and the bytes are the same.
    """
    how: dict[str, Any] = {"processes": 2, "flags": ["--train.parallel", "fsdp"]}
    launch = scene.launch(**how, anew=False, faults={"slow_batch": 0.02}, workers=0)
    target = scene.random.randint(3 * EVERY, STEPS - 2)
    launch.until(lambda: target in launch.steps() and len(checkpoints(scene.out)) > 1)
    codes = [launch.kill(everything=True)]
    newest = checkpoints(scene.out)[-1]
    file = scene.random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    place = scene.random.randrange(len(content))
    content[place] ^= 1 << scene.random.randrange(8)
    kind = scene.random.choice(["cut off", "deleted", "turned over"])
    file.unlink()
    if kind != "deleted":
        file.write_bytes(content[:place] if kind == "cut off" else content)
    launch = scene.launch(**how, anew=False)
    codes.append(launch.wait())
    assert codes[-1] == 0, launch.told()[-3000:]
    said = launch.said(f"{newest}.* is used")
    return Outcome(
        end="stopped, then continued", codes=codes, same=scene.is_same(reference=scene.undisturbed(**how)), said=said
    )


def checkpoints_all_broken(scene: Scene) -> Outcome:
    """Every checkpoint of a killed run is cut off at a random place.

    The command stops with exit code 2 and a sentence, and deletes nothing; with --overwrite it begins again, to the same bytes.
    """
    found = checkpoints(scene.killed())
    for path in found:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                with file.open("rb+") as opened:
                    opened.truncate(scene.random.randrange(file.stat().st_size))
    launch = scene.launch()
    codes = [launch.wait()]
    assert codes == [2], launch.told()[-3000:]
    said = launch.said("no checkpoint in")
    assert "Traceback" not in launch.told()
    assert checkpoints(scene.out) == found, "something was deleted"
    again = scene.launch(flags=["--overwrite"])
    codes.append(again.wait())
    assert codes[-1] == 0, again.told()[-3000:]
    return Outcome(end="stopped, then begun again", codes=codes, same=scene.is_same(), said=said)


def final_broken(scene: Scene) -> Outcome:
    """final.safetensors of a finished run is cut off at a random place, or one bit of it turned over.

    The command names it, and writes it again from the last checkpoint, to the same bytes.
    """
    shutil.copytree(scene.undisturbed(), scene.out)
    file = scene.out / "final.safetensors"
    content = bytearray(file.read_bytes())
    place = scene.random.randrange(len(content))
    if scene.random.random() < 0.5:
        content = content[:place]
    else:
        content[place] ^= 1 << scene.random.randrange(8)
    file.write_bytes(content)
    launch = scene.launch()
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    said = launch.said(f"{file}.* is written again")
    return Outcome(end="went on", codes=codes, same=scene.is_same(), said=said)


# -------------------------------------------------------------------------------------------------------------- bad images

_DAMAGES: dict[str, Callable[[Path, Random], Any]] = {
    "garbage": lambda path, random: path.write_bytes(random.randbytes(random.randrange(1, 3000))),
    "empty": lambda path, random: path.write_bytes(b""),
    "deleted": lambda path, random: path.unlink(),
    "cut off": lambda path, random: path.write_bytes(path.read_bytes()[: random.randrange(40, 90)]),
    "a link to itself, which cannot be opened": lambda path, random: (path.unlink(), path.symlink_to(path.name)),
    "a directory": lambda path, random: (path.unlink(), path.mkdir()),
}


def images_damaged(scene: Scene) -> Outcome:
    """At a random step of the first two epochs, six images become garbage, empty, deleted, cut off, impossible to open, and a
    directory.

    The run goes on with other images in their place; console, log and skipped.json name each of them, and say why.
    """
    photos = scene.place / "photos"
    shutil.copytree(scene.home.photos, photos)
    chosen = scene.random.sample(sorted(photos.rglob("*.png")), len(_DAMAGES))
    launch = scene.launch(photos=photos, faults={"slow_batch": 0.02, "slow_image": 0.002})
    step = scene.random.randint(1, 6)
    launch.until(lambda: max(launch.steps(), default=0) >= step)
    for path, damage in zip(chosen, _DAMAGES.values(), strict=True):
        damage(path, scene.random)
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    skipped = json.loads((scene.out / "skipped.json").read_text())
    assert sorted(skipped) == sorted(map(str, chosen)), f"{skipped} instead of {chosen}"
    for path, reason in skipped.items():
        assert reason
        assert f"cannot read {path} ({reason})" in launch.told()
        assert f"cannot read {path} ({reason})" in (scene.out / "log.txt").read_text()
    return Outcome(end="went on", codes=codes, said=launch.said("cannot read"))


def images_damaged_before(scene: Scene) -> Outcome:
    """Six images are damaged in the same ways (but not deleted) before the run begins; it is killed with kill -9 at a random
    moment, and continued with another number of workers.

    The substitutes are the same for everybody: the bytes are those of a run with the same damage and without the kill.
    """
    photos = scene.home.place / "damaged-photos"
    if not photos.exists():
        make_photos(photos)
        for path, name in zip(sorted(photos.rglob("*.png"))[::4], _DAMAGES, strict=True):
            if name != "deleted":
                _DAMAGES[name](path, Random(0))
    launch = scene.launch(photos=photos, workers=2)
    scene.moment(launch)
    codes = [launch.kill(everything=True)]
    codes.append(scene.finish(photos=photos, workers=0))
    same = scene.is_same(reference=scene.undisturbed(photos=photos))
    return Outcome(end="stopped, then continued", codes=codes, same=same)


# ------------------------------------------------------------------------------------------------------------------ clocks


def clocks_jump(scene: Scene) -> Outcome:
    """time.time, time.monotonic and time.perf_counter jump back and forth by up to a day, all the time.

    The run goes on, to the same bytes.
    """
    launch = scene.launch(faults={"clock": scene.random.randrange(2**31)})
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    return Outcome(end="went on", codes=codes, same=scene.is_same())


def suspended(scene: Scene) -> Outcome:
    """The process is stopped (SIGSTOP) at a random moment and woken again (SIGCONT) after up to a second.

    The run goes on, to the same bytes.
    """
    launch = scene.launch()
    scene.moment(launch)
    if launch.running():
        os.kill(launch.pid, signal.SIGSTOP)
        time.sleep(scene.random.uniform(0, 1))
        os.kill(launch.pid, signal.SIGCONT)
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    return Outcome(end="went on", codes=codes, same=scene.is_same())


# --------------------------------------------------------------------------------------------------------------------- NaN


def _ended(scene: Scene) -> dict[str, Any]:
    """How a run that met NaN ended, once it is clear that none of it is left."""
    from safetensors.numpy import load_file

    for name, values in load_file(scene.out / "final.safetensors").items():
        assert math.isfinite(float(abs(values).sum())), f"{name} is not finite"
    return json.loads((scene.out / "summary.json").read_text())


def nan_once(scene: Scene) -> Outcome:
    """NaN in the gradient, in an activation, or in the batch of one step; the run is killed with kill -9 at a random moment and
    continued.

    The step is skipped, counted and named; the bytes are those of a run with the same fault and without the kill.
    """
    faults = {"poison": [scene.random.choice(PLACES), "once", POISONED]}
    reference = scene.undisturbed(faults=faults)
    launch = scene.launch(faults=faults)
    scene.moment(launch)
    codes = [launch.kill(everything=True)]
    codes.append(scene.finish(faults=faults))
    same = scene.is_same(reference=reference)
    ending = _ended(scene)
    assert (ending["skipped_steps"], ending["lr_scale"]) == (1, 1.0), ending
    assert [line["step"] for line in metrics(scene.out) if line.get("skipped")] == [POISONED + 1]
    lines = [line for line in (scene.out / "log.txt").read_text().splitlines() if "was skipped" in line]
    return Outcome(end="went on", codes=codes, same=same, said=lines[-1].partition("WARNING ")[2])


def nan_for_a_while(scene: Scene) -> Outcome:
    """NaN in the gradient, in an activation, or in the batch of four steps in a row, then never again.

    The run goes back to the last good checkpoint, goes on from there with half the learning rate, and says so.
    """
    launch = scene.launch(faults={"poison": [scene.random.choice(PLACES), "for a while", POISONED]})
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    ending = _ended(scene)
    assert ending["lr_scale"] == 0.5, ending
    assert ending["skipped_steps"] >= 3, ending
    assert [line["step"] for line in metrics(scene.out)] == list(range(1, STEPS + 1))
    return Outcome(end="went on", codes=codes, said=launch.said(r"\d+ steps in a row were not finite"))


def nan_always(scene: Scene) -> Outcome:
    """NaN in the gradient, in an activation, or in the batch of every step from one on.

    After some tries, each with half the learning rate, the run stops with exit code 2 and a sentence that names where the NaN
    appears first; the last good checkpoint is intact, and without the fault the same command continues the run.
    """
    place = scene.random.choice(PLACES)
    launch = scene.launch(faults={"poison": [place, "always", POISONED]})
    codes = [launch.wait()]
    assert codes == [2], launch.told()[-3000:]
    said = launch.said("the loss is not finite around step")
    expected = {"gradient": "the gradient", "activation": "the output of backbone.layers.1", "batch": "the input of MAP"}
    assert f"first of all {expected[place]}" in said, said
    assert "Traceback" not in launch.told()
    codes.append(scene.finish())
    assert _ended(scene)["lr_scale"] < 1
    return Outcome(end="stopped, then continued", codes=codes, said=said)


def nan_in_one_rank(scene: Scene) -> Outcome:
    """NaN in the gradient, in an activation, or in the batch of one step, in one of two processes that train together.

    Both skip the step, and go on.
    """
    faults = {"poison": [scene.random.choice(PLACES), "once", POISONED], "rank": scene.random.choice([0, 1])}
    launch = scene.launch(processes=2, faults=faults)
    codes = [launch.wait()]
    assert codes == [0], launch.told()[-3000:]
    ending = _ended(scene)
    assert (ending["skipped_steps"], ending["lr_scale"]) == (1, 1.0), ending
    return Outcome(end="went on", codes=codes, said=launch.said(r"step \d+ was not finite"))


SCENARIOS: Sequence[Callable[[Scene], Outcome]] = (
    killed_at_any_moment,
    killed_while_it_starts,
    killed_while_it_saves,
    killed_while_it_finishes,
    killed_rank,
    killed_ranks,
    killed_worker,
    asked_by_sigterm,
    asked_by_sigint,
    asked_twice,
    asked_rank,
    asked_all,
    disk_full,
    file_too_large,
    directory_deleted,
    directory_read_only,
    launched_twice,
    checkpoint_truncated,
    checkpoint_flipped,
    shard_damaged,
    checkpoints_all_broken,
    final_broken,
    images_damaged,
    images_damaged_before,
    clocks_jump,
    suspended,
    nan_once,
    nan_for_a_while,
    nan_always,
    nan_in_one_rank,
)
"""Everything that is done, in the order of the report."""


def list_now(folder: Path) -> list[Path]:
    """What a directory holds, where it may vanish."""
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def runs(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
