"""The command line: a file per command, found by name and imported only when it is called.

    hybridmap COMMAND ...        is the same as        python -m hybridmap COMMAND ...

Every command is ``main(arguments) -> exit code``. A mistake of the user is one sentence on stderr and exit code 2; ``--debug``
shows the traceback that belongs to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hybridmap.errors import UserError
from hybridmap.ops.heap import keep_freed_memory

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("[images] [--seed N] [--out DIR]", "the first minutes: pretrain on bundled photographs, look, compare"),
    "doctor": ("[--device D]", "the environment, which kernels run and why, and each kernel checked"),
    "models": ("[GLOB]", "names, parameters, GFLOPs and sources of the backbones"),
    "recipes": ("[GLOB]", "names, cost and expected result of the recipes"),
    "pretrain": ("RECIPE [--data.root DIR] [--out DIR]", "pretrain a backbone on any folder of images"),
    "finetune": ("RECIPE --init RUN|FILE", "train a classifier from pretrained weights, or from nothing"),
    "knn": ("RUN|FILE|MODEL --data.root DIR", "nearest neighbours on frozen features"),
    "probe": ("RUN|FILE|MODEL --data.root DIR", "linear probe on frozen features"),
    "evaluate": ("RUN --data.root DIR", "accuracy of a fine-tuned classifier"),
    "embed": ("RUN|FILE|MODEL DIR -o FILE", "features of a folder of images, with their paths, in one file"),
    "reconstruct": ("RUN IMAGE... -o FILE", "original, visible patches, prediction, prediction pasted"),
    "explain": ("RUN|FILE|MODEL IMAGE -o FILE", "what each layer looks at in an image, and the scan order"),
    "report": ("RUN", "report.html and pictures of a run, finished or not"),
    "compare": ("RUN RUN... [-o FILE]", "several runs on one page: scores, settings, curves, the same images reconstructed"),
    "convert": ("OFFICIAL_FILE -o FILE [--img-size N]", "weights of the official implementations in our names"),
    "export": ("RUN|FILE|MODEL -o FILE", "a network for runtimes, as ONNX or as a program of torch.export"),
    "table": ("NAME|all|claims [--scale SCALE]", "tables and claims of the paper, run here beside what it prints"),
    "data": (
        "pack ROOT --out DIR | check ROOT",
        "images as shards, made smaller once; what is broken or there twice",
    ),
    "bench": ("ops|model NAME...|step [RECIPE]", "speed of operators, backbones or a training step, as ratios in one run"),
}
"""Command -> (its arguments, what it is for), in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` is the command and its arguments (default: those of the process). Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        from hybridmap import __version__

        print(f"hybridmap {__version__}")
        return 0
    try:
        return _run(name, rest)
    except SystemExit as leave:  # tyro leaves with 0 after --help and with 2 after a wrong flag; training with 0 after SIGTERM
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output (such as head) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        return _complain(name, error, debug="--debug" in rest)


def _run(name: str, arguments: list[str]) -> int:
    import importlib

    if name not in COMMANDS:
        from hybridmap.cli.flags import closest

        raise UserError(f"there is no command {name!r}; {closest(name, COMMANDS, 'hybridmap --help')}")
    keep_freed_memory()
    return importlib.import_module(f"hybridmap.cli.{name}").main(arguments)


def _complain(name: str, error: Exception, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename is not None else ""
        message = f"the system says: {error.strerror or error}{where}; check the path, its permissions and the free space"
    else:
        message = str(error)
    label = f"hybridmap {name}" if name in COMMANDS else "hybridmap"
    rank = os.environ.get("RANK")
    # In one piece, so that the sentences of several processes do not run into each other.
    sys.stderr.write(f"{label}{f' (process {rank})' if rank else ''}: {message}\n")
    return 2


def _overview() -> str:
    usage = {name: f"{name} {arguments}" for name, (arguments, _) in COMMANDS.items()}
    width = max(map(len, usage.values())) + 2
    lines = [f"  {usage[name]:{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hybridmap COMMAND ...",
            "",
            "Masked autoregressive pretraining (MAP) of hybrid Mamba-Transformer vision backbones.",
            "",
            *lines,
            "",
            "hybridmap COMMAND --help tells more; --debug shows the traceback of an error; hybridmap --version.",
        ]
    )


__all__ = ["COMMANDS", "main"]
