"""Started by ``srun``, without ``torchrun``: SLURM's variables say the same things in other words.

A job *step* says how many tasks it has (``SLURM_STEP_NUM_TASKS``). The variables of the job alone mean nothing: in a batch
script or an interactive allocation they promise tasks that nobody has started.
Source: SLURM's manual page of srun, section "Output Environment Variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hybridmap.errors import UserError

_PORTS = range(10_000, 30_000)
"""Where the first process listens: below the ports that systems hand out by themselves."""


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What ``torchrun`` would have set for this task; empty unless a job step of several tasks was started by ``srun`` alone.

    ``MASTER_ADDR`` and ``MASTER_PORT`` stay as they are where they are set.

    Raises:
        UserError: if SLURM says that there are several tasks, but not which one this is.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if {"RANK", "WORLD_SIZE"} & environment.keys() or not tasks.isdigit() or int(tasks) < 2:
        return {}
    needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    missing = [name for name in needed if not environment.get(name, "").isdigit()]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if missing or not nodes:
        raise UserError(
            f"SLURM says that this step has {tasks} tasks, but not {', '.join(missing or ['SLURM_JOB_NODELIST'])}; "
            f"start it with srun, or with torchrun"
        )
    step = environment.get("SLURM_STEP_ID", "0")
    sees_one = "," not in environment.get(
        "CUDA_VISIBLE_DEVICES", ","
    )  # srun --gpus-per-task 1 shows each task its own GPU alone
    offset = 7 * int(environment["SLURM_JOB_ID"]) + (int(step) if step.isdigit() else 0)
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": "0" if sees_one else environment["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_PORTS[offset % len(_PORTS)]),
    }


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts, such as ``node003`` of ``node[003-007,12],big1``.

    Raises:
        UserError: if that is no such list.
    """
    first = re.match(r"(?:[^,\[\]\s]|\[[\d,-]+\])+", nodes)
    if first is None:
        raise UserError(f"expected SLURM's list of hosts, such as node[003-007,12], got {nodes!r}; set MASTER_ADDR instead")
    return re.sub(r"\[(\d+)[\d,-]*\]", r"\1", first[0])
