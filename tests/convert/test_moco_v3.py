"""MoCo v3: the encoder is found among the networks of the contrastive loss; what is left out is named with its reason."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridmap.backbones import ViT
from hybridmap.convert import convert, load_checkpoint, origin_of
from hybridmap.convert.mae_pretrain import MaePretrain
from hybridmap.convert.moco_v3 import MocoV3

CONFIG = ViT.Config(img_size=(32, 32), patch_size=8, embed_dim=16, depth=2, num_heads=2).encoder()


def moco_file() -> tuple[dict[str, Tensor], ViT]:
    """A small pretraining file as MoCo v3 writes it, and the encoder that is in it."""
    vit = CONFIG.build()
    shapes = {"cls_token": (1, 1, 16), "pos_embed": (1, 17, 16), "patch_embed.proj.weight": (16, 3, 8, 8)}
    shapes |= {f"blocks.{i}.mlp.fc1.weight": (64, 16) for i in range(2)}
    encoder = MaePretrain().restore(vit.state_dict(), shapes)
    head = {f"head.{i}.weight": torch.ones(4, 4) for i in (0, 3, 6)} | {"head.7.num_batches_tracked": torch.tensor(3)}
    networks = {"base_encoder": encoder | head, "momentum_encoder": encoder | head, "predictor": {"0.weight": torch.ones(4, 4)}}
    return {f"{network}.{key}": value for network, state in networks.items() for key, value in state.items()}, vit


def test_the_encoder_is_converted_and_everything_else_is_left_out_with_its_reason() -> None:
    state, vit = moco_file()
    loaded = convert(state, num_heads=2)
    assert loaded.family == "moco-v3"
    assert loaded.config == CONFIG
    assert all(torch.equal(loaded.weights[key], value) for key, value in vit.state_dict().items())
    assert loaded.weights.keys() == vit.state_dict().keys()
    reasons = loaded.report.dropped
    assert reasons.keys() == {key for key in state if not key.startswith("base_encoder.") or ".head." in key}
    assert "projector" in reasons["base_encoder.head.0.weight"]
    assert "moving average" in reasons["momentum_encoder.cls_token"]
    assert "predictor" in reasons["predictor.0.weight"]


def test_the_encoder_comes_back_under_the_official_names() -> None:
    state, _ = moco_file()
    restored = MocoV3().restore(convert(state, num_heads=2).weights, {key: tuple(value.shape) for key, value in state.items()})
    assert restored.keys() == {key for key in state if key.startswith("base_encoder.") and ".head." not in key}
    assert all(torch.equal(restored[key], state[key]) for key in restored)


def test_the_small_network_has_twelve_heads_and_its_linear_probe_is_a_classifier(tmp_path) -> None:
    shapes = {"base_encoder." + key: shape for key, shape in {
        "cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "patch_embed.proj.weight": (384, 3, 16, 16),
        "blocks.0.attn.qkv.weight": (1152, 384), "blocks.0.mlp.fc1.weight": (1536, 384),
    }.items()}  # fmt: skip
    assert MocoV3().recognises(shapes)
    assert MocoV3().config(shapes).num_heads == 12

    state, _ = moco_file()
    probe = {key.removeprefix("base_encoder."): value for key, value in state.items() if key.startswith("base_encoder.")}
    probe = {key: value for key, value in probe.items() if not key.startswith("head.")}
    probe |= {"head.weight": torch.ones(10, 16), "head.bias": torch.ones(10)}
    assert origin_of(probe).family == "mae-vit"
    torch.save({"state_dict": {f"module.{key}": value for key, value in probe.items()}}, tmp_path / "linear.pth.tar")
    loaded = load_checkpoint(tmp_path / "linear.pth.tar", num_heads=2)
    assert loaded.config is not None
    assert loaded.config.num_classes == 10
