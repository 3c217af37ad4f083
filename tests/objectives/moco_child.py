"""What each of several processes does in the test of MoCo among them: some steps of training, and what then lies where."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hybridmap.backbones.hybrid import HybridNet
from hybridmap.errors import UserError
from hybridmap.hashing import uniform
from hybridmap.objectives.moco import MoCo
from hybridmap.train.distributed import World, join
from hybridmap.types import Batch

STEPS, BATCH, QUEUE = 3, 8, 16
NETWORK = HybridNet.Config(img_size=8, patch_size=4, embed_dim=8, layout="MT", num_heads=2, d_state=4)


def images(step: int, view: int) -> Tensor:
    """The global batch, by formula."""
    key = torch.arange(BATCH) + 100 * step + 1000 * view
    return uniform(key, 3 * 8 * 8, 0).view(BATCH, 3, 8, 8) - 0.5


def trained(world: World) -> tuple[MoCo, list[float]]:
    """The learner after some steps on this process's part of each batch, and its losses here."""
    torch.manual_seed(0)
    learner: MoCo = MoCo.Config(backbone=NETWORK, queue_size=QUEUE, out=4, momentum=0.5).build().train()
    model = world.wrap(learner, "ddp")
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    share = BATCH // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    losses = []
    for step in range(STEPS):
        views = tuple(images(step, view)[mine] for view in (0, 1))
        optimizer.zero_grad()
        total, _ = model(Batch(inputs=views[0], key=torch.arange(share), step_key=step, views=views))
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return learner, losses


def run(rank: int, size: int, port: int, out: Path) -> None:
    """Train among ``size`` processes, and write the state; then try it with sharded weights, and write the complaint."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    with join("cpu") as world:
        learner, losses = trained(world)
        torch.save(dict(learner.state_dict()) | {"losses": torch.tensor(losses)}, out / f"{rank}.pt")
        sharded = MoCo.Config(backbone=NETWORK, queue_size=QUEUE, out=4).build()
        views = (images(0, 0)[:4], images(0, 1)[:4])
        try:
            world.wrap(sharded, "fsdp")(Batch(inputs=views[0], key=torch.arange(4), views=views))
        except UserError as error:
            (out / f"{rank}.txt").write_text(str(error))
        dist.barrier()  # who leaves while the other still gathers, takes it down
