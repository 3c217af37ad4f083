"""MoCo: what enters the queue and when, who follows whom, who is trained, and what becomes of the trained network."""

from __future__ import annotations

import multiprocessing
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moco_child import BATCH, QUEUE, run, trained
from torch import Tensor

from hybridmap.backbones import ARM, HybridNet, MambaVision, Vim, ViT, VMamba
from hybridmap.backbones.base import Backbone
from hybridmap.config import override
from hybridmap.convert import load_checkpoint
from hybridmap.data.loader import Loader
from hybridmap.data.synthetic import Synthetic
from hybridmap.errors import UserError
from hybridmap.objectives.map import MAP
from hybridmap.objectives.moco import MoCo
from hybridmap.recipes import find
from hybridmap.recipes.smoke import scale_down
from hybridmap.tasks.classification import Classification
from hybridmap.tasks.features import describe, extract
from hybridmap.train import train
from hybridmap.train.distributed import World
from hybridmap.train.optim import AdamW
from hybridmap.train.weights import load_run
from hybridmap.types import Batch

HYBRID = HybridNet.Config(img_size=16, patch_size=8, embed_dim=16, layout="MT", num_heads=2, num_registers=2, num_classes=7)
MAMBAVISION = MambaVision.Config(
    img_size=64, embed_dim=8, depths=(1, 1, 2, 2), stem_dim=8, num_heads=(2, 4), window_size=(4, 2)
)
FAMILIES = {
    "hybrid": HYBRID,
    "mamba": replace(HYBRID, layout="MM"),
    "vit": ViT.Config(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=7),
    "vim": Vim.Config(img_size=16, patch_size=8, embed_dim=16, depth=2, num_classes=7),
    "arm, four ways": ARM.Config(img_size=16, patch_size=8, embed_dim=16, depth=2, num_classes=7),
    "arm, one way": ARM.Config(img_size=16, patch_size=8, embed_dim=16, depth=2, directions=1, positions="sincos"),
    "mambavision": MAMBAVISION,
    "vmamba": VMamba.Config(img_size=64, embed_dim=8, depths=(1, 1, 1, 1)),
}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Backbone.Config:
    return request.param


def build(backbone: Backbone.Config = HYBRID, **fields: Any) -> MoCo:
    """A small learner whose key network differs from the query's."""
    learner: MoCo = MoCo.Config(backbone=backbone, **({"queue_size": 8, "out": 6} | fields)).build().train()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


def two_views(size: int = 4, backbone: Backbone.Config = HYBRID) -> Batch:
    views = tuple(torch.randn(size, 3, backbone.img_size, backbone.img_size) for _ in range(2))
    return Batch(inputs=views[0], key=torch.arange(size), views=views)


def crops(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.views is not None
    first, second = batch.views
    return first, second


def vectors(backbone: Backbone, projector: torch.nn.Module, images: Tensor) -> Tensor:
    """Queries or keys, as the picture in the module draws them."""
    features = describe(backbone, images)
    return F.normalize(projector(features), dim=1)


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_a_loop_over_queries_and_keys() -> None:
    learner, batch = build(temperature=0.3), two_views(3)
    first, second = crops(batch)
    loss, keys = learner.step(first, second, learner.queue)
    queries = vectors(learner.backbone, learner.projector, first)
    expected = torch.stack(
        [
            -F.log_softmax(torch.stack([q @ k, *(q @ other for other in learner.queue)]) / 0.3, dim=0)[0]
            for q, k in zip(queries, keys, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)  # float32, another order of sums
    torch.testing.assert_close(keys, vectors(learner.key_backbone, learner.key_projector, second))


def test_keys_of_a_batch_are_no_negatives_of_the_same_batch() -> None:
    learner, batch = build(), two_views()
    alone = learner.step(*crops(batch), learner.queue)[0].total
    learner._follow = lambda: None  # type: ignore[method-assign]
    assert torch.equal(learner(batch).total, alone)
    assert not torch.equal(learner(batch).total, alone), "a second time its keys are in the queue"


def test_a_step_reads_the_queue_that_it_is_given() -> None:
    """A compiled step would keep the learner's own queue for its backward pass, and that one has moved on by then."""
    learner, batch = build(), two_views()
    queue = learner.queue.clone()
    expected = learner.step(*crops(batch), queue)[0].total
    learner.queue.fill_(torch.nan)
    assert torch.equal(learner.step(*crops(batch), queue)[0].total, expected)


def test_the_first_view_asks_and_the_second_answers() -> None:
    learner, batch = build(), two_views()
    _, keys = learner.step(*crops(batch), learner.queue)
    other = replace(batch, views=(torch.randn_like(batch.inputs), crops(batch)[1]))
    assert torch.equal(learner.step(*crops(other), learner.queue)[1], keys)


@pytest.mark.parametrize(("hidden", "widths"), [(None, [(16, 16), (6, 16)]), (24, [(24, 16), (6, 24)]), (0, [(6, 16)])])
def test_the_projector_has_one_or_two_linear_maps(hidden: int | None, widths: list[tuple[int, int]]) -> None:
    learner = build(hidden=hidden)
    assert [tuple(p.shape) for p in learner.projector.parameters() if p.ndim == 2] == widths


def test_half_precision_does_not_reach_similarities_and_queue() -> None:
    learner, batch = build(), two_views()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(batch).total
    assert loss.dtype == learner.queue.dtype == torch.float32
    torch.testing.assert_close(learner.queue.norm(dim=1), torch.ones(8))


# ------------------------------------------------------------------------------------------------------------ the queue


def test_the_queue_starts_with_unit_vectors() -> None:
    torch.testing.assert_close(build(queue_size=64).queue.norm(dim=1), torch.ones(64))


def test_the_oldest_keys_are_replaced_around_the_end() -> None:
    learner = build(queue_size=16)
    expected, position = learner.queue.clone(), 0
    for size in (4, 8, 8, 16, 4):  # the third batch is written over the end
        batch = two_views(size)
        learner(batch)
        keys = learner.step(*crops(batch), learner.queue)[1]  # the key network has not moved since
        for key in keys:
            expected[position] = key
            position = (position + 1) % 16
        torch.testing.assert_close(learner.queue, expected, rtol=0, atol=0)
        assert learner.position.tolist() == [position]


def test_a_queue_that_does_not_hold_whole_batches_is_refused_before_anything_moves() -> None:
    learner = build(queue_size=8)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with pytest.raises(UserError, match=r"queue_size must be a multiple of the 3 images .* got 8; try 9"):
        learner(two_views(3))
    with pytest.raises(UserError, match=r"multiple of the 16 images .* got 8; try 16"):
        learner(two_views(16))
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


# ------------------------------------------------------------------------------------------------------ the key network


def test_the_key_network_starts_as_a_copy() -> None:
    learner: MoCo = MoCo.Config(backbone=HYBRID, queue_size=8).build()
    for key, query in learner._pairs():
        assert torch.equal(key, query)
        assert key.data_ptr() != query.data_ptr()


def test_the_key_network_moves_before_its_pass() -> None:
    learner, batch = build(momentum=0.7), two_views()
    expected = [0.7 * key.detach() + 0.3 * query.detach() for key, query in learner._pairs()]
    learner(batch)
    for (key, _), value in zip(learner._pairs(), expected, strict=True):
        torch.testing.assert_close(key.detach(), value)
    assert torch.equal(learner.queue[:4], learner.step(*crops(batch), learner.queue)[1]), (
        "keys are those of the network that has moved"
    )


def test_with_momentum_0_two_equal_crops_give_equal_vectors() -> None:
    learner, batch = build(momentum=0.0), two_views()
    learner(replace(batch, views=(batch.inputs, batch.inputs)))
    queries = vectors(learner.backbone, learner.projector, batch.inputs)
    torch.testing.assert_close(learner.queue[:4], queries)


def test_all_but_the_key_network_is_trained(family: Backbone.Config) -> None:
    """Every parameter that an optimiser or DDP counts has a gradient, class tokens included; no other has one."""
    learner = build(family)
    learner(two_views(4, family)).total.backward()
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
    assert not [name for name in trained if name.startswith("key_")]
    assert AdamW.Config().build().rules(learner).keys() == trained
    assert {f"key_{name}" for name in trained} <= dict(learner.named_parameters()).keys()
    assert {name for name in learner.layer_ids() if name.startswith("key_")} == {
        name for name, _ in learner.named_parameters() if name.startswith("key_")
    }


def test_gradients_do_not_reach_the_queue() -> None:
    learner = build()
    learner(two_views()).total.backward()
    assert not learner.queue.requires_grad
    assert learner.queue.grad_fn is None


# --------------------------------------------------------------------------------------------- what represents an image


def test_it_is_pooled_without_registers_and_from_the_class_token_where_there_is_one() -> None:
    images = crops(two_views())[0]
    for name in ("hybrid", "mamba"):
        backbone = build(FAMILIES[name]).backbone
        assert backbone.registers is None
        torch.testing.assert_close(describe(backbone, images), backbone.forward_features(images).mean(1))
    vit = build(FAMILIES["vit"]).backbone
    torch.testing.assert_close(describe(vit, images), vit.forward_features(images)[:, 0])
    vim = build(FAMILIES["vim"]).backbone
    assert vim.config.class_token == "middle"
    features = vim.encode_visible(vim.partition(images), None, prefix=True)
    torch.testing.assert_close(describe(vim, images), features.prefix[:, 0])


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_batch_without_two_crops_is_refused() -> None:
    learner, batch = build(), two_views()
    with pytest.raises(UserError, match=r"the batch has 1; set data\.views to 2"):
        learner(replace(batch, views=None))
    with pytest.raises(UserError, match="the batch has 3"):
        learner(replace(batch, views=(*crops(batch), batch.inputs)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, "temperature must be more than 0, got 0.0"),
        ({"queue_size": 0}, "queue_size must be a multiple of the batch, got 0"),
        ({"out": 0}, "the projector needs widths, got hidden None and out 0"),
        ({"hidden": -1}, "the projector needs widths, got hidden -1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoCo.Config(backbone=HYBRID, **fields)


# ------------------------------------------------------------------------------------------------------------ transfer


def test_weights_of_the_same_learner_are_taken_over_whole() -> None:
    source, target, batch = build(), build(), two_views()
    report = target.initialise({name: value.clone() for name, value in source.state_dict().items()})
    assert report.dropped == report.fresh == {}
    assert torch.equal(source(batch).total, target(batch).total)


def test_after_other_pretraining_the_key_network_starts_as_a_copy() -> None:
    target = build()
    report = target.initialise(MAP.Config(backbone=HYBRID).build().state_dict())
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert all(torch.equal(key, query) for key, query in target._pairs())


def test_fine_tuning_loads_the_query_backbone(family: Backbone.Config) -> None:
    learner = build(family)
    classifier: Classification = Classification.Config(backbone=family, num_classes=5).build()
    report = classifier.initialise(learner.state_dict())
    state = classifier.state_dict()
    same_shape = [name for name in report.loaded if state[name].shape == learner.state_dict()[name].shape]
    assert [name for name in same_shape if not torch.equal(state[name], learner.state_dict()[name])] == []
    assert {name for name in learner.state_dict() if name.startswith("backbone.")} <= {*report.loaded, *report.dropped}
    assert not [name for name in report.loaded if not name.startswith("backbone.")]
    if isinstance(family, Vim.Config):
        assert {"backbone.cls_token", "backbone.cls_pos"} <= set(report.loaded), "it was trained, so it is taken over"


# -------------------------------------------------------------------------------------------------------- whole runs


def small(name: str = "moco-tiny", **changes: Any) -> Any:
    return override(scale_down(find(name)), {"train.steps": 6, "train.checkpoint_every": 2} | changes)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    class Breaking(Loader):
        def _batch(self, *arguments: Any) -> Batch:
            if self._seen >= 4 * 5:
                raise ConnectionError("the data are gone")
            return super()._batch(*arguments)

    recipe = small(**{"learner.backbone.drop_path": 0.2, "learner.queue_size": 12})
    train(recipe, tmp_path / "whole", device="cpu", loader=Loader)
    with pytest.raises(ConnectionError):
        train(recipe, tmp_path / "parts", device="cpu", loader=Breaking)
    assert load_run(tmp_path / "parts")[1]["position"].tolist() == [4]  # 4 steps of 4 in a queue of 12
    train(recipe, tmp_path / "parts", device="cpu", loader=Loader)
    ended = [(tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "parts")]
    assert ended[0] == ended[1]


@pytest.mark.parametrize("name", ["moco-vim-base", "moco-vit-base", "moco-base"])
def test_the_file_of_a_run_holds_a_backbone_for_the_exams(name: str, tmp_path: Path) -> None:
    train(small(name, **{"train.steps": 2}), tmp_path / "run", device="cpu", loader=Loader)
    recipe, weights = load_run(tmp_path / "run")
    learner = recipe.learner.build()
    learner.load_state_dict(weights)
    loaded = load_checkpoint(tmp_path / "run" / "final.safetensors")
    assert loaded.config is not None
    backbone = loaded.config.build()
    backbone.load_state_dict(loaded.backbone, strict=True)
    images = Synthetic.Config(size=32, length=4)
    assert torch.equal(extract(backbone, images).features, extract(learner, images).features)
    assert {name.partition(".")[0] for name in loaded.report.dropped} == {
        "projector",
        "key_backbone",
        "key_projector",
        "queue",
        "position",
    }


def test_the_queue_is_the_same_in_all_processes_and_that_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run, args=(rank, 2, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in one.items():
        assert name == "losses" or torch.equal(value, two[name]), name
    learner, losses = trained(World(rank=0, size=1, device=torch.device("cpu")))
    assert one["position"].tolist() == [3 * BATCH % QUEUE]
    # The same sums in another order, over three steps.
    torch.testing.assert_close((one["losses"] + two["losses"]) / 2, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    sentences = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(sentences) == 1
    assert "set train.parallel to ddp" in sentences.pop()
