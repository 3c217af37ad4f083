"""Official state dicts become ours and back, and every tensor is accounted for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridmap.backbones import ARM, HybridNet, MambaVision, Vim, ViT
from hybridmap.cli import main
from hybridmap.convert import ORIGINS, convert, load_checkpoint, origin_of
from hybridmap.convert.ours import write_ours
from hybridmap.convert.resize import resized, with_channels
from hybridmap.convert.vim import VimClassifier
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import resample

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FILES = [
    ("map-pretrain-a", "map-hybridnet"),
    ("map-pretrain-b", "map-hybridnet"),
    ("map-encoder-nonsquare-a", "map-hybridnet"),
    ("mamba-reg-12tok-reduce2", "mamba-reg"),
    ("mamba-reg-1tok-layernorm", "mamba-reg"),
    ("mamba-reg-8tok-reduce4-nonsquare", "mamba-reg"),
    ("mae-pretrain-b", "mae-pretrain"),
    ("mae-vit-cls-nonsquare", "mae-vit"),
    ("mae-vit-globalpool", "mae-vit"),
    ("arm-pretrain-a", "arm-pretrain"),
    ("arm-finetune-a", "arm-finetune"),
    ("arm-finetune-b", "arm-finetune"),
    ("mambavision-a", "mambavision"),
    ("mambavision-b-nonsquare-padded", "mambavision"),
    ("vim-v2-midcls", "vim"),
    ("vim-v2-nodiv-meanpool", "vim"),
    ("vim-v1-doublecls", "vim"),
    ("vim-none-headcls-layernorm", "vim"),
]
FOREIGN = ("moco-a", "moco-v2-mlp")


def official(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A recorded official state dict, and what ``convert`` must be told of it."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    args = json.loads((FIXTURES / f"{name}.json").read_text())["config"]["args"]
    size, patch = args.get("img_size"), args.get("patch_size")
    grid = (size[0] // patch, size[1] // patch) if isinstance(size, list) else None
    heads = args.get("num_heads")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return state, {"num_heads": heads[2] if isinstance(heads, list) else heads, "grid": grid}


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_converting_and_restoring_gives_back_every_tensor(name: str, kind: str) -> None:
    state, told = official(name)
    origin = origin_of(state)
    assert origin.family == kind
    loaded = origin.convert(state, keep_untrained=True, **told)
    assert set(loaded.report.dropped) <= {"mask"}  # a buffer of ARM's, which follows from the clusters
    restored = origin.restore(loaded.weights, {key: tuple(value.shape) for key, value in state.items()})
    assert restored.keys() == state.keys() - loaded.report.dropped.keys()
    assert all(torch.equal(restored[key], state[key]) for key in restored)


@pytest.mark.parametrize("keep_untrained", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_the_inferred_backbone_takes_the_weights_strictly(name: str, keep_untrained: bool) -> None:
    state, told = official(name)
    loaded = convert(state, keep_untrained=keep_untrained, **told)
    assert loaded.config is not None
    loaded.config.build().load_state_dict(loaded.backbone, strict=True)


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_one_origin_alone_recognises_a_file(name: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in official(name)[0].items()}
    assert sum(origin.recognises(shapes) for origin in ORIGINS) == 1


def test_shapes_tell_all_of_a_hybrid_network_but_its_heads() -> None:
    state, _ = official("map-pretrain-b")
    config = convert(state, num_heads=2, keep_untrained=True).config
    assert isinstance(config, HybridNet.Config)
    assert (config.layout, config.embed_dim, config.num_heads, config.transformer_mlp_ratio) == ("MMMTMMMTM", 32, 2, 2.0)
    assert (config.num_registers, config.cls_reduce, config.norm_kind, config.d_state, config.num_classes) == (
        4,
        2,
        "layer",
        8,
        7,
    )
    assert (config.img_size, config.patch_size, config.d_conv, config.expand) == ((80, 80), 16, 4, 2)


def test_the_decoder_of_a_pretraining_file_is_described() -> None:
    assert convert(official("map-pretrain-b")[0], num_heads=2).decoder == {
        "width": 64,
        "depth": 4,
        "mlp_ratio": 4,
        "num_heads": 16,
    }
    assert convert(official("mae-pretrain-b")[0], num_heads=4).decoder["depth"] == 2


def test_shapes_tell_all_of_a_vit_but_its_heads() -> None:
    state, told = official("mae-vit-globalpool")
    config = convert(state, **told).config
    assert isinstance(config, ViT.Config)
    assert (config.depth, config.embed_dim, config.num_heads, config.mlp_ratio) == (3, 48, 4, 4.0)
    assert (config.pool, config.norm_position, config.num_classes) == ("avg", "pooled", 10)


def test_shapes_tell_all_of_an_arm_but_its_read_out() -> None:
    config = convert(official("arm-finetune-b")[0]).config
    assert config == ARM.Config(img_size=(96, 96), embed_dim=32, depth=6, num_classes=6)
    loaded = convert(official("arm-pretrain-a")[0])
    one_way = ARM.Config(img_size=(192, 192), embed_dim=40, directions=1, scan="cluster(4)", positions="sincos")
    assert loaded.config == one_way.encoder()
    assert loaded.decoder == {"width": 64, "depth": 4, "mlp_ratio": 4, "num_heads": 1}
    assert loaded.report.dropped == {"mask": "it follows from the clusters, and is made anew"}


def test_the_class_row_is_taken_out_of_the_middle_of_the_positions() -> None:
    state, _ = official("arm-finetune-a")
    weights = convert(state).weights
    table = state["pos_embed"]
    assert torch.equal(weights["cls_pos"], table[:, 8:9])
    assert torch.equal(weights["pos_embed"], torch.cat([table[:, :8], table[:, 9:]], dim=1))


def test_the_encoder_of_arm_without_decoder_is_accepted() -> None:
    state, _ = official("arm-pretrain-a")
    encoder = {key: value for key, value in state.items() if key.startswith(("patch_embed.", "pos_embed", "layers."))}
    loaded = convert(encoder)
    assert loaded.family == "arm-pretrain"
    assert set(loaded.report.fresh) == {"norm.weight", "norm.bias"}
    assert loaded.decoder == {}
    assert loaded.config is not None
    missing = loaded.config.build().load_state_dict(loaded.backbone, strict=False)
    assert set(missing.missing_keys) == {"norm.weight", "norm.bias"}


def test_shapes_tell_all_of_a_mambavision_but_its_heads_and_windows() -> None:
    config = convert(official("mambavision-b-nonsquare-padded")[0], num_heads=4).config
    assert isinstance(config, MambaVision.Config)
    assert (config.depths, config.embed_dim, config.stem_dim, config.mlp_ratio) == ((1, 2, 4, 3), 12, 8, 2.0)
    assert (config.num_heads, config.qk_norm, config.num_classes, config.in_chans) == ((4, 8), False, 6, 3)
    assert config.layer_scale is not None
    assert config.conv_layer_scale is not None
    other = convert(official("mambavision-a")[0], num_heads=4).config
    assert isinstance(other, MambaVision.Config)
    assert other.layer_scale is None
    assert other.conv_layer_scale is None
    with pytest.raises(UserError, match="how many heads a MambaVision of width 12 has; give num_heads"):
        convert(official("mambavision-b-nonsquare-padded")[0])


def test_a_mambavision_file_with_a_prefix_and_without_counters_is_complete() -> None:
    state, told = official("mambavision-a")
    bare = {f"model.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    origin = origin_of(bare)
    assert origin.family == "mambavision"
    loaded, whole = convert(bare, **told), convert(state, **told)
    assert loaded.weights.keys() == whole.weights.keys()
    assert {name.rpartition(".")[2] for name in loaded.report.fresh} == {"num_batches_tracked"}
    assert loaded.config is not None
    loaded.config.build().load_state_dict(loaded.backbone, strict=True)
    restored = origin.restore(loaded.weights, {key: tuple(value.shape) for key, value in bare.items()})
    assert all(torch.equal(restored[key], bare[key]) for key in bare)


def test_norms_of_queries_and_keys_are_taken_over() -> None:
    state, told = official("mambavision-a")
    attention = [key.removesuffix(".qkv.weight") for key in state if key.endswith(".qkv.weight")]
    width = {2: 64 // 4, 3: 128 // 8}
    for name in attention:
        for norm in ("q_norm", "k_norm"):
            for leaf in ("weight", "bias"):
                state[f"{name}.{norm}.{leaf}"] = torch.randn(width[int(name.split(".")[1])])
    loaded = convert(state, **told)
    assert isinstance(loaded.config, MambaVision.Config)
    assert loaded.config.qk_norm
    net = loaded.config.build()
    net.load_state_dict(loaded.backbone, strict=True)
    assert torch.equal(net.stages[3].blocks[1].mixer.k_norm.bias, state["levels.3.blocks.1.mixer.k_norm.bias"])


def test_what_pretraining_never_trains_is_dropped_with_its_reason() -> None:
    state, told = official("map-pretrain-b")
    loaded = convert(state, **told)
    assert set(loaded.report.dropped) == {
        "cls_token",
        "pos_embed_cls",
        "neck.weight",
        "norm_neck.weight",
        "norm_neck.bias",
        "head.weight",
        "head.bias",
    }
    assert all("never trains" in reason for reason in loaded.report.dropped.values())
    assert not any(name.startswith(("registers.", "head.")) for name in loaded.weights)
    assert loaded.config is not None
    loaded.config.build().load_state_dict(loaded.backbone, strict=True)


def test_without_a_classifier_the_head_starts_fresh() -> None:
    state, told = official("mamba-reg-4tok")
    loaded = convert({key: value for key, value in state.items() if not key.startswith("head.")}, **told)
    assert set(loaded.report.fresh) == {"head.fc.weight", "head.fc.bias"}
    assert loaded.config is not None
    loaded.config.build().load_state_dict(loaded.backbone, strict=True)


def test_a_mae_encoder_without_decoder_is_accepted() -> None:
    state, told = official("mae-pretrain-a")
    encoder = {key: value for key, value in state.items() if not key.startswith(("decoder_", "mask_token"))}
    loaded = convert(encoder, **told)
    assert loaded.family == "mae-pretrain"
    assert not loaded.decoder


@pytest.mark.parametrize("name", FOREIGN)
def test_a_checkpoint_of_another_model_is_refused_and_named(name: str, tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth is of no supported model"):
        load_checkpoint(tmp_path / "other.pth")


def test_unexplained_and_missing_tensors_are_listed() -> None:
    state, told = official("mamba-reg-4tok")
    with pytest.raises(UserError, match=r"1 tensors have no place in it: layers\.0\.mixer\.gamma"):
        convert(state | {"layers.0.mixer.gamma": torch.ones(48)}, **told)
    del state["layers.2.mixer.x_proj_b.weight"]
    with pytest.raises(UserError, match=r"1 of its tensors are missing: layers\.2\.mixer\.x_proj_b\.weight"):
        convert(state, **told)


def test_another_layout_than_the_released_one_is_refused() -> None:
    state, told = official("map-pretrain-a")
    with pytest.raises(UserError, match="only the released MMMT layout"):
        convert({key: value for key, value in state.items() if not key.startswith("blocks.1.")}, **told)


def test_heads_follow_the_released_sizes_or_are_asked_for() -> None:
    state, _ = official("map-pretrain-a")
    assert convert(state).config.num_heads == 12  # width 48
    with pytest.raises(UserError, match="12 heads do not divide the width 32"):
        convert(official("map-pretrain-b")[0])
    with pytest.raises(UserError, match="num_heads"):
        convert(official("mae-pretrain-a")[0])


def test_a_grid_that_is_not_square_must_be_told() -> None:
    state, told = official("mamba-reg-8tok-reduce4-nonsquare")
    with pytest.raises(UserError, match="pass grid"):
        convert(state)
    config = convert(state, **told).config
    assert config.img_size == tuple(side * config.patch_size for side in told["grid"])


@pytest.mark.parametrize("name", ["map-pretrain-a", "mae-pretrain-b", "mamba-reg-4tok", "vim-v2-midcls"])
def test_a_converted_file_is_read_as_ours(name: str, tmp_path: Path) -> None:
    state, told = official(name)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "official.pth")
    loaded = load_checkpoint(tmp_path / "official.pth", **told)
    write_ours(loaded, tmp_path / "a.safetensors")
    write_ours(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert again.weights.keys() == loaded.weights.keys()
    assert all(torch.equal(again.weights[key], loaded.weights[key]) for key in loaded.weights)
    assert (again.family, again.decoder) == (loaded.family, loaded.decoder)
    assert again.config is not None
    again.config.build().load_state_dict(again.backbone, strict=True)


def test_a_converted_file_says_what_it_came_from(tmp_path: Path) -> None:
    state, told = official("map-pretrain-a")
    torch.save({"model": state}, tmp_path / "official.pth")
    loaded = load_checkpoint(tmp_path / "official.pth", **told)
    write_ours(loaded, tmp_path / "a.safetensors", source=tmp_path / "official.pth")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["hybridmap"])
    assert about["source_sha256"] == hashlib.sha256((tmp_path / "official.pth").read_bytes()).hexdigest()
    assert about["family"] == "map-hybridnet"
    assert about["dropped"] == loaded.report.dropped
    assert about["dropped"]["cls_token"] == "saved by the released pretraining, which never trains it"


@pytest.mark.parametrize(
    "name",
    ["map-pretrain-a", "mae-pretrain-b", "mamba-reg-8tok-reduce4-nonsquare", "mae-vit-cls-nonsquare", "vim-v2-midcls"],
)
def test_weights_are_resampled_for_another_size(name: str) -> None:
    state, told = official(name)
    loaded = convert(state, **told)
    patch = loaded.config.patch_size
    size = (5 * patch, 4 * patch)
    other = resized(loaded, size)
    assert other.config.img_size == size
    assert other.weights.keys() == loaded.weights.keys()
    network = other.config.build()
    network.load_state_dict(other.backbone)
    assert network(torch.zeros(1, loaded.config.in_chans, *size)).isfinite().all()
    changed = {key for key, value in other.weights.items() if value.shape != loaded.weights[key].shape}
    assert changed == {"pos_embed"} | ({"decoder.pos_embed"} & loaded.weights.keys())
    same = resized(loaded, loaded.config.img_size)
    assert all(torch.equal(same.weights[key], loaded.weights[key]) for key in loaded.weights)
    with pytest.raises(UserError, match="must be a multiple of the patch size"):
        resized(loaded, patch + 1)


def test_the_official_resize_of_a_vim_mixes_its_class_row_with_the_patches() -> None:
    """Coordinates as positions show what happens: 4x4 patches, the class row 8 (far away) among them, to 8x8."""
    state, told = official("vim-v2-midcls")
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.zeros(1, 17, 48)
    patches = [i for i in range(17) if i != 8]
    table[0, patches, 0], table[0, patches, 1], table[0, 8, 0] = rows.flatten(), columns.flatten(), 1000.0
    loaded = convert(state | {"pos_embed": table}, **told)
    right, theirs = resized(loaded, 128), resized(loaded, 128, official_vim_resize=True)
    assert right.config == theirs.config
    assert torch.equal(right.weights["cls_pos"], loaded.weights["cls_pos"])
    assert right.weights["pos_embed"].max() < 4
    # The class token was row 7 of 16 behind the first, the last of the second line of four; its own row is now a blend.
    assert theirs.weights["pos_embed"].max() > 500
    assert not torch.equal(theirs.weights["cls_pos"], loaded.weights["cls_pos"])
    official_table = torch.cat([table[:, :1], resample(table[:, 1:], (4, 4), (8, 8))], dim=1)
    assert torch.equal(theirs.weights["cls_pos"], official_table[:, 32:33])
    assert torch.equal(theirs.weights["pos_embed"], torch.cat([official_table[:, :32], official_table[:, 33:]], dim=1))
    last = slice(56, 64)  # the only line whose cubic neighbours are behind the class token's: there both agree
    torch.testing.assert_close(theirs.weights["pos_embed"][0, last, :2], right.weights["pos_embed"][0, last, :2])


def test_the_official_resize_is_for_a_vim_with_one_class_token() -> None:
    for name in ("mamba-reg-4tok", "vim-v1-doublecls", "vim-bidirectional-rope"):
        state, told = official(name)
        with pytest.raises(UserError, match="official_vim_resize is for a Vim with positions and one class token"):
            resized(convert(state, **told), 128, official_vim_resize=True)


@pytest.mark.parametrize("name", ["map-pretrain-a", "mae-vit-globalpool", "vim-v2-midcls", "arm-finetune-a", "mambavision-a"])
def test_weights_are_adapted_to_other_channels(name: str) -> None:
    state, told = official(name)
    loaded = convert(state, **told)
    grey = with_channels(loaded, 1)
    coloured, plain = (part.config.build() for part in (loaded, grey))
    coloured.load_state_dict(loaded.backbone)
    plain.load_state_dict(grey.backbone)
    size = coloured.default_cfg["input_size"][1:]
    image = torch.randn(2, 1, *size)
    torch.testing.assert_close(plain.eval()(image), coloured.eval()(image.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)
    assert with_channels(loaded, 3) is loaded
    assert not any(key.startswith("decoder.") for key in grey.weights)
    assert all("old channels" in grey.report.dropped[key] for key in loaded.weights if key.startswith("decoder."))
    with pytest.raises(UserError, match="at least one channel"):
        with_channels(loaded, 0)
    with pytest.raises(UserError, match="only three channels become 4, but the file has 1"):
        with_channels(grey, 4)


def test_weights_and_checkpoints_of_a_run_are_read_as_ours(tmp_path: Path) -> None:
    weights = {
        "backbone.pos_embed": torch.zeros(1, 4, 8),
        "decoder.mask_token": torch.zeros(1, 1, 4),
        "target.codes": torch.ones(2),
    }
    save_file(weights, tmp_path / "final.safetensors", metadata={"hybridmap": '{"kind": "weights"}'})
    loaded = load_checkpoint(tmp_path / "final.safetensors")
    assert loaded.weights.keys() == {"pos_embed", "decoder.mask_token"}
    assert loaded.report.dropped == {"target.codes": "neither of the backbone nor of the decoder"}
    assert loaded.config is None

    state = {f"learner.{name}": value for name, value in weights.items()} | {"ema.backbone.pos_embed": torch.ones(1, 4, 8)}
    state["optimizer.backbone.pos_embed.exp_avg"] = torch.zeros(1, 4, 8)
    save_file(state, tmp_path / "step.safetensors", metadata={"hybridmap": '{"kind": "checkpoint"}'})
    raw, average = (load_checkpoint(tmp_path / "step.safetensors", ema=ema) for ema in (False, True))
    assert float(raw.weights["pos_embed"].sum()) == 0
    assert float(average.weights["pos_embed"].sum()) == 32
    assert raw.report.dropped["optimizer.backbone.pos_embed.exp_avg"] == "state of the training"


def test_damaged_metadata_and_files_without_backbone_are_refused(tmp_path: Path) -> None:
    for about, message in (("no JSON", "damaged"), ("[]", "damaged"), ("{}", "holds no backbone")):
        save_file({"decoder.mask_token": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"hybridmap": about})
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / "w.safetensors")


def test_a_file_that_cannot_be_written_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_ours(convert(official("mamba-reg-4tok")[0]), tmp_path / "file" / "w.safetensors")


def test_rotary_tables_are_dropped_because_our_network_computes_them() -> None:
    state, _ = official("vim-bidirectional-rope")
    origin = origin_of(state)
    assert origin.family == "vim"
    loaded = convert(state)
    assert loaded.report.dropped == dict.fromkeys(
        ("rope.freqs_cos", "rope.freqs_sin"), "a fixed table, which our network computes"
    )
    assert isinstance(loaded.config, Vim.Config)
    assert (loaded.config.rope, loaded.config.positions, loaded.config.mixer, loaded.config.class_token) == (
        True,
        "none",
        "uni",
        "none",
    )
    assert (loaded.config.img_size, loaded.config.num_classes) == ((64, 64), 5)
    loaded.config.build().load_state_dict(loaded.backbone, strict=True)
    restored = origin.restore(loaded.weights, {key: tuple(value.shape) for key, value in state.items()})
    assert restored.keys() == {key for key in state if not key.startswith("rope.")}
    assert all(torch.equal(restored[key], state[key]) for key in restored)


def test_shapes_tell_the_mixer_the_class_tokens_and_the_norm_of_a_vim() -> None:
    found = {name: convert(official(name)[0]).config for name, kind in FILES if kind == "vim"}
    told = {name: (c.class_token, c.mixer, c.norm_kind, c.positions) for name, c in found.items() if isinstance(c, Vim.Config)}
    assert told == {
        "vim-v2-midcls": ("middle", "v2", "rms", "learned"),
        "vim-v2-nodiv-meanpool": ("none", "v2", "rms", "learned"),
        "vim-v1-doublecls": ("double", "v1", "rms", "learned"),
        "vim-none-headcls-layernorm": ("middle", "uni", "layer", "learned"),
    }


@pytest.mark.parametrize(("kind", "row"), [("middle", 8), ("first", 0)])
def test_the_class_row_of_a_vim_is_where_its_token_stands(kind: Any, row: int) -> None:
    state, _ = official("vim-v2-midcls")
    loaded = VimClassifier(kind).convert(state)
    table = state["pos_embed"]
    assert torch.equal(loaded.weights["cls_pos"], table[:, row : row + 1])
    assert torch.equal(loaded.weights["pos_embed"], torch.cat([table[:, :row], table[:, row + 1 :]], dim=1))
    assert isinstance(loaded.config, Vim.Config)
    assert loaded.config.class_token == kind


def test_a_vim_of_overlapping_patches_is_told_by_its_grid() -> None:
    state, _ = official("vim-v2-midcls")
    config = convert(state | {"pos_embed": torch.zeros(1, 27 * 27 + 1, 48)}).config
    assert isinstance(config, Vim.Config)
    assert (config.img_size, config.stride) == ((224, 224), 8)
    state, _ = official("vim-v2-midcls-nonsquare-stride8")
    with pytest.raises(UserError, match=r"pass grid=\(rows, columns\)"):
        convert(state)
    assert convert(state, grid=(5, 9)).config.img_size == (80, 144)  # no shape tells its stride


def test_a_layer_scale_of_a_vim_is_taken_over() -> None:
    state, _ = official("vim-v2-midcls")
    scales = {f"layers.{i}.mixer.gamma": torch.full((48,), 0.25) for i in range(6)}
    loaded = convert(state | scales)
    assert loaded.config is not None
    net = loaded.config.build()
    net.load_state_dict(loaded.backbone, strict=True)
    assert torch.equal(net.layers[5].mixer.gamma.data, scales["layers.5.mixer.gamma"])
    with pytest.raises(UserError, match=r"layers\.3\.mixer\.gamma"):
        convert(state | {key: value for key, value in scales.items() if "3" not in key})


def test_a_vim_without_any_positions_asks_for_its_grid() -> None:
    state, _ = official("vim-bidirectional-rope")
    bare = {key: value for key, value in state.items() if not key.startswith("rope.")}
    with pytest.raises(UserError, match="does not tell for which size"):
        convert(bare)
    assert convert(bare, grid=(2, 3)).config.img_size == (32, 48)


TOLD = {
    "vim-none-headcls-layernorm": ["--tell", "class_token=first"],
    "vim-v2-nodiv-meanpool": ["--tell", "divide=false"],
    "vim-v2-midcls-nonsquare-stride8": ["--grid", "5", "9", "--tell", "stride=8", "img_size=48,80"],
    "vim-bidirectional-rope": ["--tell", "bidirectional_pairs=true", "rope_residual=yes", "rope_side=4"],
    "mambavision-b-nonsquare-padded": ["--num-heads", "4", "--tell", "window_size=4,3"],
    "mamba-reg-8tok-reduce4-nonsquare": ["--grid", "4", "6"],
}
"""Recordings of networks whose shapes do not tell all -> what the command line must be told."""


@pytest.mark.parametrize("name", TOLD)
def test_what_shapes_do_not_tell_is_told_on_the_command_line(name: str, tmp_path: Path) -> None:
    state, _ = official(name)
    recorded = load_file(FIXTURES / f"{name}.safetensors")
    theirs, ours = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors")
    torch.save({"model": state}, theirs)
    assert main(["convert", theirs, "-o", ours, *TOLD[name]]) == 0
    network = load_checkpoint(ours).build().eval()
    with torch.no_grad():
        logits = network(recorded["input.image"].float())
    # float32 sums in another order; without what is told it is an error, or the logits differ by more than 1e-3
    assert (logits - recorded["output.logits"]).abs().max() <= 2e-5


def test_nothing_else_can_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors")
    torch.save({"model": official("vim-v2-midcls")[0]}, theirs)
    for words, sentence in [
        (["depth=3"], "a file of Vim tells depth itself; only class_token, pool, divide, "),
        (["class_token"], "--tell expects FIELD=VALUE, got class_token; try --tell class_token=first"),
        (["class_token=last"], "class_token"),
        (["class_token=double"], "the tensors make no whole Vim: "),
        (["divide=perhaps"], "divide"),
    ]:
        assert main(["convert", theirs, "-o", ours, "--tell", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not Path(ours).exists()
    torch.save({"model": official("mamba-reg-4tok")[0]}, theirs)
    assert main(["convert", theirs, "-o", ours, "--tell", "pool=mean"]) == 2
    assert "tells pool itself; nothing needs to be told" in capsys.readouterr().err
    assert main(["convert", theirs, "-o", ours]) == 0
    assert main(["convert", ours, "-o", str(tmp_path / "again.safetensors"), "--grid", "4", "4"]) == 2
    assert "is one of ours and says itself what network it is of; leave grid out" in capsys.readouterr().err


def test_tensors_of_another_size_are_named() -> None:
    state, told = official("mae-vit-cls-nonsquare")
    key = "blocks.1.mlp.fc2.weight"
    with pytest.raises(UserError, match=r"no whole ViT: 1 are of another size \(layers\.1\.mlp\.fc2\.weight \(3, 5\) for \("):
        convert(state | {key: torch.zeros(3, 5)}, **told)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("vim-v2-midcls", "layers.0.mixer.A_log", ()),
        ("vim-v2-midcls", "pos_embed", (5,)),
        ("mae-vit-globalpool", "patch_embed.proj.weight", (5,)),
        ("mambavision-a", "levels.2.blocks.0.mlp.fc1.weight", ()),
        ("arm-finetune-a", "pos_embed", ()),
        ("map-pretrain-a", "blocks.0.mlp.fc1.weight", ()),
    ],
)
def test_sizes_are_told_by_no_tensor_of_another_shape(name: str, key: str, shape: tuple[int, ...]) -> None:
    state, told = official(name)
    assert key in state
    with pytest.raises(UserError, match=r"tensors of other shapes than any such network|no grid of|are of another size"):
        convert(state | {key: torch.zeros(shape)}, **told)


def test_a_file_of_ours_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    state, told = official("vim-v2-midcls")
    loaded = convert(state, **told)
    lost = {name: value for name, value in loaded.weights.items() if name != "layers.1.norm.weight"}
    write_ours(replace(loaded, weights=lost | {"stray": torch.zeros(1)}), tmp_path / "half.safetensors")
    with pytest.raises(
        UserError, match=r"1 are missing \(layers\.1\.norm\.weight\), 1 have no place in it \(stray\); copy the file again"
    ):
        load_checkpoint(tmp_path / "half.safetensors")


def test_what_the_file_lacked_is_fresh_in_the_converted_one_too(tmp_path: Path) -> None:
    state, told = official("arm-pretrain-a")
    encoder = {key: value for key, value in state.items() if key.startswith(("patch_embed.", "pos_embed", "layers."))}
    write_ours(convert(encoder, **told), tmp_path / "a.safetensors")
    again = load_checkpoint(tmp_path / "a.safetensors")
    assert set(again.report.fresh) == {"norm.weight", "norm.bias"}
    assert again.build()(torch.zeros(1, 3, 192, 192)).isfinite().all()
