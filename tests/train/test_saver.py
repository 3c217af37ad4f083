"""Checkpoints beside the training: what is written is what was, and what goes wrong is said."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from train_toy import ToyLearner, ToyLoader, toy_recipe

from hybridmap.errors import UserError
from hybridmap.train import checkpoint, read_weights, train
from hybridmap.train.checkpoint import BrokenFile, Checkpoints, read, read_record
from hybridmap.train.distributed import World
from hybridmap.train.loop import GradScaler
from hybridmap.train.saver import Saver
from hybridmap.train.shards import Shards, copy_to_host
from hybridmap.train.state import TrainState

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def state() -> TrainState:
    torch.manual_seed(0)
    learner = ToyLearner.Config().build()
    recipe = toy_recipe()
    optim = recipe.optim.build()
    optimizer = optim.optimizer(learner.named_parameters(), optim.rules(learner))
    return TrainState(learner, optimizer, GradScaler("cpu", enabled=False), step=3)


def test_the_state_may_change_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *what: (go.wait(10), write(*what)))
    now = state()
    before = {name: value.clone() for name, value in now.tensors().items()}
    with Saver(Checkpoints(tmp_path, keep=2), ALONE, sharded=False) as saver:
        saver.save(now, now.record())
        assert not list(tmp_path.glob("step-*"))
        with torch.no_grad():
            for parameter in now.learner.parameters():
                parameter.add_(1)
        go.set()
        saver.wait()
        written, record = read(tmp_path / "step-00000003.safetensors")
        assert record["step"] == 3
        assert all(torch.equal(written[name], value) for name, value in before.items())
        now.step = 4
        saver.save(now, now.record())
    later = read(tmp_path / "step-00000004.safetensors")[0]
    assert all(torch.equal(later[name], value + 1) for name, value in before.items() if value.is_floating_point())


def test_a_full_disk_stops_the_run_at_the_next_step_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file = checkpoint.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "00000004" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"no space left to write .*step-00000004.*what was saved before is intact"):
        train(toy_recipe(steps=12, checkpoint_every=2), tmp_path / "run", loader=ToyLoader, device="cpu")
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints", 2).paths()] == [
        "step-00000000.safetensors",
        "step-00000002.safetensors",
    ]


def test_buffers_are_used_again() -> None:
    host: dict[str, torch.Tensor] = {}
    first = copy_to_host({"a": torch.ones(3)}, host)["a"]
    second = copy_to_host({"a": torch.full((3,), 2.0)}, host)["a"]
    assert first.data_ptr() == second.data_ptr()
    assert second.tolist() == [2.0, 2.0, 2.0]


@pytest.fixture
def alone_together(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(folder: Path, step: int, value: float) -> Path:
    mesh = init_device_mesh("cpu", (1,))
    tensors = {
        "learner.a": distribute_tensor(torch.full((5, 3), value), mesh, [Shard(0)]),
        "learner.flag": torch.tensor([True, False]),
        "optimizer.a.step": torch.tensor(float(step)),
    }
    shards = Shards()
    path = Checkpoints(folder, keep=2).path_of(step, sharded=True)
    shards.write(path, shards.copy(tensors, {}), {"kind": "checkpoint", "step": step, "extra": False})
    return path


def test_sharded_checkpoints_are_read_whole(alone_together: None, tmp_path: Path) -> None:
    path = sharded(tmp_path, 5, 2.5)
    tensors, record = read(path)
    assert torch.equal(tensors["learner.a"], torch.full((5, 3), 2.5))
    assert tensors["learner.flag"].tolist() == [True, False]
    assert tensors["optimizer.a.step"] == 5.0
    assert (record["step"], read_record(path)["kind"]) == (5, "checkpoint")
    assert read_weights(path)[0].keys() == {"a", "flag"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["cut", "flip", "gone", "record", "no record"])
def test_a_damaged_shard_gives_way_to_the_checkpoint_before(
    alone_together: None, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = sharded(tmp_path, 5, 1.0), sharded(tmp_path, 6, 2.0)
    shard, record = next(bad.glob("*.safetensors")), bad / "record.json"
    data = bytearray(shard.read_bytes())
    if fault == "cut":
        shard.write_bytes(data[:-3])
    elif fault == "flip":
        data[-3] ^= 4
        shard.write_bytes(data)
    elif fault == "gone":
        shard.unlink()
    elif fault == "record":
        record.write_text(record.read_text()[:-5])
    else:
        record.unlink()
    with pytest.raises(BrokenFile, match="step-00000006"):
        read(bad)
    assert Checkpoints(tmp_path, keep=2).newest() == good
    assert "the checkpoint before it is used" in caplog.text


def test_whatever_bit_of_a_record_is_flipped_it_is_noticed(alone_together: None, tmp_path: Path) -> None:
    path = sharded(tmp_path, 5, 1.0)
    content = (path / "record.json").read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (path / "record.json").write_bytes(changed)
        with pytest.raises(BrokenFile, match="is not a whole checkpoint"):
            read_record(path)


def test_sharded_checkpoints_are_pruned_and_dropped_as_files_are(alone_together: None, tmp_path: Path) -> None:
    paths = [sharded(tmp_path, step, 1.0) for step in (1, 2, 3, 4)]
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.prune()
    assert checkpoints.paths() == paths[2:]
    checkpoints.drop_after(3)
    assert checkpoints.paths() == paths[2:3]
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_cannot_write_its_shard_says_so(
    alone_together: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".step-00000001.tmp").write_text("a file in the way")
    with pytest.raises(UserError, match=r"cannot write .*step-00000001"):
        sharded(tmp_path, 1, 1.0)


@pytest.mark.slow
def test_two_processes_write_shards_that_one_continues_from(launch: Any, tmp_path: Path) -> None:
    recipe = toy_recipe(learner=ToyLearner.Config(), steps=20, checkpoint_every=5, parallel="fsdp", ema=0.5)
    processes = launch.together(recipe, tmp_path / "run", 2)
    for process in processes:
        process.join(120)
    kept = Checkpoints(tmp_path / "run" / "checkpoints", keep=2).paths()
    assert all(path.is_dir() for path in kept)
    assert len(list(kept[-1].glob("*.safetensors"))) == 2
    tensors, record = read(kept[-1])
    final = read(tmp_path / "run" / "final.safetensors")[0]
    assert record["step"] == 20
    assert all(torch.equal(tensors[f"ema.{name}"], value) for name, value in final.items())
    assert json.loads((kept[-1] / "record.json").read_text())["kind"] == "checkpoint"
