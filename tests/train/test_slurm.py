from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import losses, plain_recipe
from train_child import wait_for
from train_toy import ToyLoader

from hybridmap.errors import UserError
from hybridmap.train import train
from hybridmap.train.slurm import first_host, torchrun_variables

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[003-007,12]",
    "SLURM_JOB_NODELIST": "login,node[003-007,12]",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[003-007,12]", "node003"),
        ("node12", "node12"),
        ("big1,node[1-2]", "big1"),
        ("rack[2-3]n[07,09-11]", "rack2n07"),
        ("a-b-3.cluster,c", "a-b-3.cluster"),
        ("n[5]", "n5"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_what_is_no_list_of_hosts_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"such as node\[003-007,12\], got '\[\]'; set MASTER_ADDR instead"):
        first_host("[]")


def test_a_task_of_a_step_is_a_rank() -> None:
    found = torchrun_variables(STEP)
    assert found.pop("MASTER_PORT") == str(10_000 + 7 * 4711 % 20_000)
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node003"}


@pytest.mark.parametrize(("visible", "local"), [("3", "0"), ("0,1,2,3", "1")])
def test_a_task_that_sees_one_gpu_takes_it(visible: str, local: str) -> None:
    assert torchrun_variables(STEP | {"CUDA_VISIBLE_DEVICES": visible})["LOCAL_RANK"] == local


def test_two_steps_of_a_job_have_two_ports() -> None:
    ports = {torchrun_variables(STEP | {"SLURM_STEP_ID": str(step)})["MASTER_PORT"] for step in range(4)}
    assert len(ports) == 4
    assert torchrun_variables(STEP | {"MASTER_PORT": "29500", "MASTER_ADDR": "ib0"})["MASTER_PORT"] == "29500"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        STEP | {"RANK": "0", "WORLD_SIZE": "2"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},
        {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")},
    ],
    ids=["no SLURM", "torchrun started by srun", "an interactive allocation", "a batch script"],
)
def test_everything_else_stays_as_it_is(environment: dict[str, str]) -> None:
    assert torchrun_variables(environment) == {}


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID"])
def test_a_step_that_does_not_say_which_task_this_is_is_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"this step has 8 tasks, but not {name}; start it with srun"):
        torchrun_variables({key: value for key, value in STEP.items() if key != name})


def step_of_two(rank: int, port: int) -> dict[str, str]:
    own = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return STEP | own | {"SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}


def test_two_tasks_of_srun_train_what_one_process_does_and_heed_its_signal(launch: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe, out = plain_recipe(), tmp_path / "two"
    train(recipe, tmp_path / "one", loader=ToyLoader, device="cpu")
    tasks = [launch(recipe, out, sleep=0.05, environment=step_of_two(rank, port)) for rank in range(2)]
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) >= 4, tasks[0])
    for task in tasks:
        os.kill(task.pid, signal.SIGUSR1)
        os.kill(task.pid, signal.SIGTERM)  # the same request once more, as torchrun passes it on
    for task in tasks:
        task.join(60)
    assert [task.exitcode for task in tasks] == [0, 0]
    assert 4 <= len(losses(out)) < 20
    train(recipe, out, loader=ToyLoader, device="cpu")
    torch.testing.assert_close(losses(out), losses(tmp_path / "one"), rtol=1e-5, atol=1e-6)
