from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from timm.optim import Lars
from timm.optim.lamb import Lamb
from torch import nn
from train_toy import ToyLearner

from hybridmap.errors import UserError
from hybridmap.train.optim import LAMB, LARS, SGD, AdamW, Muon, orthogonalise, set_lr

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


class Named(nn.Module):
    """Parameters of the recorded names, with the ids that a backbone of that many layers gives them."""

    def __init__(self, names: list[str], depth: int, layers: str) -> None:
        super().__init__()
        self.ids: dict[str, int] = {}
        for name in names:
            module: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            one_dimensional = leaf == "bias" or name.startswith(("fc_norm", *(f"{layers}.{i}.0" for i in range(depth))))
            parameter = nn.Parameter(torch.ones(2) if one_dimensional else torch.ones(2, 2))
            if name in ("cls_token", "pos_embed"):
                parameter.no_weight_decay = True
            module.register_parameter(leaf, parameter)
            if name.startswith(("cls_token", "pos_embed", "patch_embed")):
                self.ids[name] = 0
            elif name.startswith(layers):
                self.ids[name] = int(name.split(".")[1]) + 1
            else:
                self.ids[name] = depth + 1

    def layer_ids(self) -> dict[str, int]:
        return self.ids


@pytest.mark.parametrize("family", ["mae", "arm"])
def test_layer_decay_and_weight_decay_are_those_of_the_authors(family: str) -> None:
    recorded = json.loads((FIXTURES / "tables-a.json").read_text())["layer_decay"][family]
    model = Named(list(recorded["groups"]), recorded["depth"], recorded["blocks_attribute"])
    adamw = AdamW.Config(lr=1.0, layer_decay=recorded["layer_decay"], weight_decay=recorded["weight_decay"]).build()
    rules = adamw.rules(model)
    assert rules.keys() == recorded["groups"].keys()
    for name, (lr_scale, weight_decay) in recorded["groups"].items():
        assert rules[name].lr_scale == pytest.approx(lr_scale, rel=1e-12), name
        assert rules[name].weight_decay == weight_decay, name


def test_marks_on_parameters_decide_about_decay() -> None:
    model = nn.Module()
    model.weight, model.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    model.scale, model.token = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1, 1, 2))
    model.A_log, model.D = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    model.token.no_weight_decay = True
    model.A_log.ssm_state = model.D.ssm_state = True

    def decayed(**fields: bool) -> set[str]:
        return {name for name, rule in AdamW.Config(**fields).build().rules(model).items() if rule.weight_decay}

    assert decayed() == {"weight", "bias"}, "a parameter called bias of two axes is decayed unless its name ends in .bias"
    assert decayed(decay_ssm_state=True) == {"weight", "bias", "A_log"}


def test_a_bias_of_any_shape_is_not_decayed() -> None:
    model = nn.ModuleDict({"inner": nn.Module()})
    model["inner"].register_parameter("bias", nn.Parameter(torch.ones(2, 2)))
    assert AdamW.Config().build().rules(model)["inner.bias"].weight_decay == 0.0


def test_frozen_parameters_have_no_rule() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert AdamW.Config().build().rules(model).keys() == {"bias"}


def test_groups_are_one_per_rule_and_share_the_rate() -> None:
    learner = ToyLearner.Config().build()
    adamw = AdamW.Config(lr=1.0, layer_decay=0.5).build()
    rules = adamw.rules(learner)
    optimizer = adamw.optimizer(learner.named_parameters(), rules)
    assert len(optimizer.param_groups) == len(set(rules.values()))
    assert sorted(name for group in optimizer.param_groups for name in group["names"]) == sorted(rules)
    set_lr(optimizer, 0.8)
    for group in optimizer.param_groups:
        for name in group["names"]:
            assert group["lr"] == pytest.approx(0.8 * rules[name].lr_scale)
    assert rules["backbone.embed.weight"].lr_scale == 0.5**3
    assert rules["head.weight"].lr_scale == 1.0, "what layer_ids leaves out belongs to the last layer"


def test_the_rate_follows_the_batch_unless_it_is_absolute() -> None:
    assert AdamW.Config(base_lr=1.5e-4, base_batch=256).build().lr(4096) == pytest.approx(2.4e-3)
    assert AdamW.Config(base_lr=5e-4, base_batch=512).build().lr(8192) == pytest.approx(8e-3)
    assert AdamW.Config(lr=1e-3, base_lr=1.0).build().lr(4096) == 1e-3
    assert AdamW.Config(base_lr=1.5e-4).build().tell_lr(4096) == "lr 0.0024 = 0.00015 x 4096 / 256"
    assert AdamW.Config(lr=1e-3).build().tell_lr(4096) == "lr 0.001, as set"


def test_layer_decay_needs_layers() -> None:
    with pytest.raises(UserError, match=r"optim\.layer_decay needs a learner that numbers its layers, and Linear has no"):
        AdamW.Config(layer_decay=0.75).build().rules(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": -1.0}, "learning rate must be 0 or more, got -1.0"),
        ({"betas": (0.9, 1.0)}, "betas must lie in"),
        ({"layer_decay": 0.0}, "layer_decay must lie in"),
        ({"base_batch": 0}, "base_batch must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdamW.Config(**fields)


def test_a_flag_on_the_device_turns_a_step_into_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3))
    adamw = AdamW.Config(lr=0.1).build()
    model = nn.ParameterDict({"p": parameter})
    optimizer = adamw.optimizer(model.named_parameters(), adamw.rules(model))
    set_lr(optimizer, 0.1)
    parameter.grad = torch.full((3,), torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert parameter.equal(torch.ones(3))
    assert optimizer.state[parameter]["step"] == 0
    assert optimizer.state[parameter]["exp_avg"].equal(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not parameter.equal(torch.ones(3))
    assert optimizer.state[parameter]["step"] == 1


def test_sgd_steps_as_torch_does_and_a_skipped_first_step_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    twin = copy.deepcopy(model)
    sgd = SGD.Config(lr=0.1, weight_decay=0.2).build()
    ours = sgd.optimizer(model.named_parameters(), sgd.rules(model))
    set_lr(ours, 0.1)
    theirs = torch.optim.SGD(
        [{"params": [twin.weight], "weight_decay": 0.2}, {"params": [twin.bias], "weight_decay": 0.0}], lr=0.1, momentum=0.9
    )
    ours.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    ours.step()
    ours.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for _ in range(3):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = b.grad = torch.randn_like(a)
        ours.step()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert sgd.lr(512) == 0.1
    assert SGD.Config().build().lr(512) == pytest.approx(0.06)


def test_impossible_momentum_of_sgd_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.momentum must lie in \[0, 1\), got -0.1"):
        SGD.Config(momentum=-0.1)


def test_lars_steps_as_timm_does_and_skips_what_is_flagged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    nn.init.zeros_(model[1].weight)  # a tensor of no length is not stretched
    twin = copy.deepcopy(model)
    lars = LARS.Config(lr=0.5, trust=0.02).build()
    ours = lars.optimizer(model.named_parameters(), lars.rules(model))
    set_lr(ours, 0.5)
    matrices = {"params": [twin[0].weight, twin[1].weight], "always_adapt": True}
    vectors = {"params": [twin[0].bias, twin[1].bias], "always_adapt": False}
    theirs = Lars([matrices, vectors], lr=0.5, momentum=0.9, trust_coeff=0.02, eps=0.0)
    for k in range(5):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = torch.full_like(a, torch.nan)
            b.grad = torch.randn_like(b)
        if k == 2:
            ours.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
            ours.step()
        ours.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert b.grad is not None
            a.grad = b.grad.clone()
        ours.step()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert LARS.Config().build().lr(16384) == pytest.approx(6.4)


def test_lars_decays_matrices_before_it_looks_at_their_length() -> None:
    model = nn.Linear(3, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    lars = LARS.Config(lr=0.5, weight_decay=0.1, trust=0.02).build()
    ours = lars.optimizer(model.named_parameters(), lars.rules(model))
    set_lr(ours, 0.5)
    model.weight.grad, model.bias.grad = torch.randn(2, 3), torch.randn(2)
    ours.step()
    update = model.weight.grad + 0.1 * weight
    torch.testing.assert_close(model.weight.detach(), weight - 0.5 * 0.02 * weight.norm() / update.norm() * update)
    torch.testing.assert_close(model.bias.detach(), bias - 0.5 * model.bias.grad)


def test_an_impossible_trust_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.trust must be more than 0, got 0"):
        LARS.Config(trust=0.0)


@pytest.mark.parametrize("longest", [1.0, None])
def test_lamb_steps_as_timm_does_and_skips_what_is_flagged(longest: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    nn.init.zeros_(model[1].weight)  # a tensor of no length is not stretched
    twin = copy.deepcopy(model)
    lamb = LAMB.Config(lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, max_grad_norm=longest).build()
    ours = lamb.optimizer(model.named_parameters(), lamb.rules(model))
    set_lr(ours, 0.05)
    groups = [
        {"params": [twin[0].weight, twin[1].weight], "weight_decay": 0.1},
        {"params": [twin[0].bias, twin[1].bias], "weight_decay": 0.0},
    ]
    theirs = Lamb(groups, lr=0.05, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=longest)
    for k in range(5):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        if k == 2:
            ours.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, torch.nan)
            ours.step()
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                assert b.grad is not None
                a.grad = b.grad.clone()
        ours.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        ours.step()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_impossible_lengths_of_gradients_are_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.max_grad_norm must be more than 0 or none, got 0.0"):
        LAMB.Config(max_grad_norm=0.0)


def test_orthogonalised_matrices_keep_their_singular_vectors_and_lose_their_lengths() -> None:
    torch.manual_seed(0)
    for shape in ((24, 64), (64, 24), (16, 16)):
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        steep = u * torch.logspace(0, -2, min(shape)) @ v
        found = u.mT @ orthogonalise(steep) @ v.mT
        assert 0.5 < found.diagonal().min() < found.diagonal().max() < 1.3
        assert (found - found.diagonal().diag()).abs().max() < 1e-4
    assert orthogonalise(torch.zeros(3, 5)).count_nonzero() == 0


def test_muon_steps_as_torch_does() -> None:
    """torch's own orthogonalises in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    model = nn.Linear(48, 32, bias=False)
    theirs = nn.Parameter(model.weight.detach().clone())
    muon = Muon.Config(lr=0.01, weight_decay=0.1).build()
    ours = muon.optimizer(model.named_parameters(), muon.rules(model))
    set_lr(ours, 0.01)
    expected = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    begin = theirs.detach().clone()
    for _ in range(3):
        model.weight.grad = theirs.grad = torch.randn(32, 48)
        ours.step()
        expected.step()
    assert (model.weight - theirs).norm() < 0.02 * (theirs - begin).norm()


def test_muon_leaves_what_is_no_matrix_to_adamw() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(8, 4), "conv": nn.Conv1d(4, 4, 3), "norm": nn.LayerNorm(4)})
    model.table = nn.Parameter(torch.randn(5, 4))
    twin = copy.deepcopy(model)
    for network, optim in ((model, Muon.Config(lr=0.01).build()), (twin, AdamW.Config(lr=0.01).build())):
        optimizer = optim.optimizer(network.named_parameters(), optim.rules(network))
        set_lr(optimizer, 0.01)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    differing = [name for name, value in model.named_parameters() if not torch.equal(value, twin.get_parameter(name))]
    assert differing == ["fc.weight"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 1.0}, r"optim\.momentum must lie in \[0, 1\), got 1.0"),
        ({"matrix_lr": 0.0}, r"optim\.matrix_lr must be more than 0, got 0.0"),
        ({"lr": -1.0}, "learning rate must be 0 or more, got -1.0"),
    ],
)
def test_impossible_settings_of_muon_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Muon.Config(**fields)


def test_a_flag_on_the_device_turns_a_step_of_muon_into_nothing() -> None:
    model = nn.Linear(4, 3)
    muon = Muon.Config(lr=0.01, matrix_lr=5.0).build()
    optimizer = muon.optimizer(model.named_parameters(), muon.rules(model))
    set_lr(optimizer, 0.01)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.05}

    def step(value: float) -> tuple[torch.Tensor, torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.tensor(float(value != value))  # type: ignore[attr-defined]
        optimizer.step()
        return model.weight.detach().clone(), optimizer.state[model.weight]["momentum"].clone()

    before, after = step(1.0), step(float("nan"))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(step(1.0)[0], after[0])
