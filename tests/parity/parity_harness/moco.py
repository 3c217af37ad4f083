"""MoCo's queue, key network and loss over several steps. The recorded encoder is a toy, so ours is a toy backbone here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridmap.backbones.base import ImageBackbone
from hybridmap.objectives.moco import MoCo
from hybridmap.types import Batch, Features, Patches
from parity_harness.recording import Recording


class Toy(ImageBackbone):
    """Images of one pixel with many channels, a linear map, ReLU: the part of the recorded encoder before ``fc``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageBackbone.Config):
        pass

    def __init__(self, config: Toy.Config) -> None:
        super().__init__(config)
        self.num_features = self.embed_dim = config.embed_dim
        self.linear = nn.Linear(config.in_chans, config.embed_dim)

    def partition(self, inputs: Tensor) -> Patches:
        batch, values = inputs.shape[:2]
        empty = torch.zeros(batch, 1, 2)
        return Patches(content=inputs.view(batch, 1, values), coords=empty, source=empty[..., 0].long(), grid=(1, 1))

    def encode_visible(self, patches: Patches, mask: Any, **options: Any) -> Features:
        encoded = self.linear(patches.content).relu()
        return Features(patches=encoded, prefix=encoded[:, :0])

    def pooled(self, features: Features) -> Tensor:
        return features.patches.mean(1)


def moco_config(config: dict[str, Any]) -> MoCo.Config:
    """Ours from the arguments of the official constructor."""
    args, encoder = config["args"], config["encoder"]
    assert args.keys() == {"dim", "K", "m", "T", "mlp"}
    assert encoder.keys() == {"d_in", "hidden"}
    return MoCo.Config(
        backbone=Toy.Config(img_size=1, patch_size=1, in_chans=encoder["d_in"], embed_dim=encoder["hidden"]),
        momentum=args["m"],
        temperature=args["T"],
        queue_size=args["K"],
        hidden=None if args["mlp"] else 0,
        out=args["dim"],
    )


def official_names(learner: MoCo) -> dict[str, Tensor]:
    """Our state by the names and in the layout of the official state dict."""
    places = {"backbone.linear.": "encoder_q.body.1.", "projector.": "encoder_q.fc."}
    places |= {f"key_{ours}": theirs.replace("encoder_q", "encoder_k") for ours, theirs in places.items()}
    named = {"queue": learner.queue.mT, "queue_ptr": learner.position}
    for ours, value in learner.state_dict().items():
        for start, theirs in places.items():
            if ours.startswith(start):
                named[theirs + ours.removeprefix(start)] = value
    return named


def moco(rec: Recording) -> None:
    learner: MoCo = moco_config(rec.config).build().to(rec.dtype).train()
    mine, state = official_names(learner), rec.state()
    assert mine.keys() == state.keys()
    with torch.no_grad():
        for name, value in mine.items():
            value.copy_(state[name])
    trained = {name: parameter for name, parameter in learner.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=rec.config["lr"])

    def keep_logits(*given: Tensor) -> Tensor:
        kept.append(formed(*given))
        return kept[-1]

    formed, kept = learner.logits, []
    learner.logits = keep_logits  # type: ignore[method-assign]
    for i in range(rec.config["steps"]):
        views = tuple(rec.input(f"step{i}.{side}")[:, :, None, None] for side in ("q", "k"))
        optimizer.zero_grad()
        loss = learner(Batch(inputs=views[0], key=torch.arange(len(views[0])), step_key=i, views=views)).total
        loss.backward()
        rec.check(f"output.step{i}.logits", kept[-1])
        rec.check(f"output.step{i}.labels", torch.zeros(len(views[0]), dtype=torch.int64))
        rec.check(f"output.step{i}.loss", loss)
        rec.check_true(
            f"step {i}: a parameter of the key network has a gradient", all(p.grad is None for p in keys_of(learner))
        )
        gradients = {name: value.grad for name, value in official_parameters(learner).items() if value.grad is not None}
        rec.check_each(f"grad.step{i}.", r"(encoder_q\..*)", lambda name, found=gradients: found[name])
        rec.check_true(
            f"step {i}: other parameters have a gradient",
            gradients.keys() == {name for name in state if name.startswith("encoder_q.")},
        )
        optimizer.step()
        after = official_names(learner)
        rec.check_each(f"after.step{i}.", r"(.*)", lambda name, found=after: found[name])


def official_parameters(learner: MoCo) -> dict[str, nn.Parameter]:
    """The parameters, which hold gradients, by official name."""
    by_place = {value.data_ptr(): name for name, value in official_names(learner).items()}
    return {by_place[parameter.data_ptr()]: parameter for parameter in learner.parameters()}


def keys_of(learner: MoCo) -> list[nn.Parameter]:
    """The key network's parameters."""
    return [*learner.key_backbone.parameters(), *learner.key_projector.parameters()]
