"""A process that has imported everything and forks the command from it, so that a launch takes no seconds of imports.

Each line of its input is a JSON object: ``arguments`` of the command, ``environment`` to add, ``output`` (a file for both
streams), and perhaps ``limit`` (the largest file that may be written). It answers with the number of the new process, and
once that has ended, the exit code stands in the file OUTPUT.NUMBER.code. End of input: it leaves.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

PRELOADED = (
    "hybridmap.cli.pretrain",
    "hybridmap.cli.report",
    "hybridmap.cli.runs",
    "hybridmap.data.loader",
    "hybridmap.recipes.smoke",
    "hybridmap.train",
    "torch.utils.tensorboard",
)
"""What the command imports as it goes."""
running: dict[int, str] = {}
"""Process -> the file of its output."""


def reap(number: int, frame: FrameType | None) -> None:
    """Write down how the processes ended that have."""
    while running:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # all were found by the same handler, called for one more of them while it was at work
            return
        if not pid:
            return
        note = Path(f"{running.pop(pid)}.{pid}.code")
        temporary = note.with_suffix(".new")
        temporary.write_text(str(os.waitstatus_to_exitcode(status)))
        temporary.rename(note)


def become(request: dict[str, Any]) -> None:
    """Be the command from here on; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.environ.update(request["environment"])
        if "limit" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
        sys.argv = ["hybridmap", *request["arguments"]]
        from hybridmap.cli import main

        code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        # As at the end of any program, but that nothing of the parent's is run.
        import threading

        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        import multiprocessing.util

        multiprocessing.util._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Import, then fork on request."""
    for name in PRELOADED:
        importlib.import_module(name)

    signal.signal(signal.SIGCHLD, reap)
    print("ready", flush=True)
    for line in sys.stdin:
        # A process that ends at once must be known before its end is.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(request)
        running[pid] = request["output"]
        print(pid, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


if __name__ == "__main__":
    main()
