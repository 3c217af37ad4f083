"""The process against closed forms, the network's start, and the loss: keys decide everything, only masked patches matter."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridmap.backbones.base import Backbone
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.vmamba import VMamba
from hybridmap.config import override
from hybridmap.data.loader import Loader
from hybridmap.errors import UserError
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.diffusion import Denoiser, Process
from hybridmap.objectives.map import MAP
from hybridmap.objectives.targets import Diffusion
from hybridmap.recipes import find
from hybridmap.recipes.smoke import scale_down
from hybridmap.tasks.classification import Classification
from hybridmap.tokens.images import assemble, partition
from hybridmap.tokens.masking import Random
from hybridmap.tokens.regions import DecoderMask
from hybridmap.train.loop import train
from hybridmap.types import Batch, Mask, Patches

SMALL = Diffusion.Config(width=16, depth=1, repeats=2, sampling_steps=3)
MAMBAVISION = MambaVision.Config(
    img_size=128, embed_dim=8, depths=(1, 1, 3, 2), stem_dim=6, num_heads=(2, 4), window_size=(4, 2), mlp_ratio=2
)
VMAMBA = VMamba.Config(img_size=64, embed_dim=8, depths=(1, 1, 1, 1))


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def every(process: Process) -> Tensor:
    return torch.arange(len(process))


# ------------------------------------------------------------------------------------------------------------------ process


def test_the_cosine_schedule_is_the_closed_form_until_beta_is_capped() -> None:
    process = Process.cosine()
    s = torch.arange(1, 1001, dtype=torch.float64) / 1000
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    closed = ((s + 0.008) / 1.008 * math.pi / 2).cos().square() / start
    torch.testing.assert_close(process.kept[:999], closed[:999], rtol=1e-9, atol=0)  # the cap touches the last beta alone
    betas = process.log_beta.exp()
    assert betas[-1].item() == pytest.approx(0.999, abs=1e-12)
    assert (betas.diff() > 0).all()
    assert process.kept[999] > closed[999]


def test_a_step_back_is_what_bayes_rule_says() -> None:
    process = Process.cosine(50)
    t = every(process)[1:]
    clean, noisy = vectors(49, 3), vectors(49, 3)
    beta, before = process.log_beta.exp()[1:, None], process.kept[:-1, None]
    # x_{t-1} given x_0 is normal, x_t given x_{t-1} too: precisions add up, means are weighted by them
    prior, likelihood = 1 / (1 - before), (1 - beta) / beta
    variance = 1 / (prior + likelihood)
    mean = variance * (prior * before.sqrt() * clean + likelihood * noisy / (1 - beta).sqrt())
    torch.testing.assert_close(process.step_back(clean, noisy, t), mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.log_posterior[1:, None].exp(), variance, rtol=1e-9, atol=0)
    assert process.log_posterior[0] == process.log_posterior[1]


def test_noise_can_be_taken_out_exactly_by_who_knows_it() -> None:
    process = Process.cosine(50)
    clean, noise, t = vectors(50, 3), vectors(50, 3), every(process)
    torch.testing.assert_close(process.expected(noise, process.noised(clean, t, noise), t), clean, rtol=1e-8, atol=1e-8)


def test_noised_standard_normal_vectors_stay_so() -> None:
    process = Process.cosine()
    t = torch.randint(1000, (200_000,))
    assert process.noised(vectors(200_000, 1), t, vectors(200_000, 1)).std().item() == pytest.approx(1, abs=0.01)  # 6 sigma


def test_a_thinned_chain_keeps_its_ends_and_what_is_left_at_each_time() -> None:
    process = Process.cosine()
    few = process.thinned(10)
    assert few.times.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    torch.testing.assert_close(few.kept, process.kept[few.times], rtol=1e-8, atol=0)  # 1 - beta cancels
    whole = process.thinned(1000)
    torch.testing.assert_close(whole.posterior_clean, process.posterior_clean, rtol=1e-9, atol=1e-15)
    assert torch.equal(whole.times, every(process))


@pytest.mark.parametrize("steps", [1, 1001])
def test_impossible_numbers_of_sampling_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"between 2 and 1000, got {steps}"):
        Process.cosine().thinned(steps)


def test_the_variational_term_is_the_divergence_of_two_normal_distributions() -> None:
    process = Process.cosine(50)
    t = every(process)[1:]
    clean, noise, share = vectors(49, 4), vectors(49, 4), vectors(49, 4)
    noisy = process.noised(clean, t, noise)
    guess = noise + 0.1 * vectors(49, 4)
    out = torch.cat([guess, share], dim=1)
    low, high = process.log_posterior[1:, None], process.log_beta[1:, None]
    ours = torch.distributions.Normal(
        process.step_back(process.expected(guess, noisy, t), noisy, t), ((low + (share + 1) / 2 * (high - low)) / 2).exp()
    )
    true = torch.distributions.Normal(process.step_back(clean, noisy, t), (low / 2).exp())
    expected = torch.distributions.kl_divergence(true, ours).mean(1) / math.log(2)
    torch.testing.assert_close(process.variational(out, clean, noisy, t), expected, rtol=1e-8, atol=1e-8)


def test_the_variational_term_vanishes_for_the_true_step_back() -> None:
    process = Process.cosine(50)
    t = every(process)[1:]
    clean, noise = vectors(49, 4), vectors(49, 4)
    out = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    assert process.variational(out, clean, process.noised(clean, t, noise), t).abs().max() < 1e-9


def test_at_the_first_step_the_term_is_a_likelihood_whose_bins_add_up_to_one() -> None:
    process = Process.cosine()
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    noisy = torch.tensor([[0.3]], dtype=torch.float64).expand(256, 1)
    out = torch.tensor([[0.4, 0.9]], dtype=torch.float64).expand(256, 2)
    bits = process.variational(out, bins, noisy, torch.zeros(256, dtype=torch.int64))
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-9)  # up to the floor of 1e-12 for each bin
    assert bits.argmin() in range(150, 170)  # the bins around 0.3, whose mean the little noise of step 0 hardly moves


def test_the_variational_term_teaches_the_variance_alone() -> None:
    process = Process.cosine(50)
    clean, noise, t = vectors(50, 4), vectors(50, 4), every(process)
    out = vectors(50, 8).requires_grad_()
    process.variational(out, clean, process.noised(clean, t, noise), t).sum().backward()
    assert out.grad is not None
    assert (out.grad[:, :4] == 0).all()
    assert (out.grad[:, 4:] != 0).all()


@pytest.mark.parametrize("variances", [0, 3])
def test_who_knows_the_noise_samples_the_clean_vector(variances: int) -> None:
    process = Process.cosine().thinned(7)
    clean = vectors(5, 3)

    def network(x: Tensor, t: Tensor) -> Tensor:
        kept = Process.cosine().kept[t][:, None]
        return torch.cat([(x - kept.sqrt() * clean) / (1 - kept).sqrt(), vectors(5, variances)], dim=1)

    drawn = process.sample(network, vectors(5, 3), lambda step: vectors(5, 3))
    torch.testing.assert_close(drawn, clean, rtol=1e-9, atol=1e-9)


def test_the_best_network_for_a_normal_distribution_samples_it() -> None:
    process = Process.cosine().thinned(100)
    mean, std = 0.5, 0.3

    def network(x: Tensor, t: Tensor) -> Tensor:
        kept = Process.cosine().kept[t][:, None]
        total = kept * std**2 + 1 - kept
        return (1 - kept).sqrt() * (x - kept.sqrt() * mean) / total  # E[noise | x_t]

    drawn = process.sample(network, vectors(20_000, 1), lambda step: vectors(20_000, 1))
    assert drawn.mean().item() == pytest.approx(mean, abs=0.01)  # 4.7 sigma of the sampling
    assert drawn.std().item() == pytest.approx(std, abs=0.02)  # 100 steps in place of 1000 make it 0.01 too wide


def test_tables_are_numbers_even_where_parameters_are_not_yet() -> None:
    with torch.device("meta"):
        target: Diffusion = SMALL.build(width=5, grid=(4, 4), patch_values=48)
    assert target.pos_embed.is_meta
    assert torch.equal(target.sampling.log_beta, Process.cosine().thinned(3).log_beta)
    assert torch.equal(target.network.frequencies, Denoiser(6, 5, outputs=6, width=16, depth=2).frequencies)


# ------------------------------------------------------------------------------------------------------------------ network


def test_the_network_starts_as_zero_and_knows_time_and_condition_afterwards() -> None:
    network = Denoiser(6, 5, outputs=12, width=16, depth=2)
    noisy, t, condition = torch.randn(4, 6), torch.tensor([0, 1, 500, 999]), torch.randn(4, 5)
    assert (network(noisy, t, condition) == 0).all()
    assert all((layer.modulation.weight == 0).all() and (layer.modulation.bias == 0).all() for layer in network.layers)
    assert network.time[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    out = network(noisy, t, condition)
    assert out.shape == (4, 12)
    for others in ((noisy + 1, t, condition), (noisy, 999 - t, condition), (noisy, t, condition + 1)):
        assert ((network(*others) - out).abs().amax(1) > 1e-4).all()


def test_one_condition_serves_all_repeats() -> None:
    network = Denoiser(6, 5, outputs=6, width=16, depth=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    noisy, t, condition = torch.randn(3, 4, 6), torch.randint(1000, (3, 4)), torch.randn(3, 1, 5)
    torch.testing.assert_close(network(noisy, t, condition), network(noisy, t, condition.expand(-1, 4, -1)))


# --------------------------------------------------------------------------------------------------------------------- loss


@pytest.fixture
def objective(build: Callable[..., MAP]) -> MAP:
    return build(target=SMALL)


def states(objective: MAP, batch: Batch) -> tuple[Tensor, Patches, Mask]:
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    return objective.decode(patches, mask), patches, mask


def diffusion(objective: MAP) -> Diffusion:
    assert isinstance(objective.target, Diffusion)
    return objective.target


def test_before_training_the_expected_error_of_the_noise_is_one() -> None:
    patches = partition(torch.randn(8, 3, 16, 16), 4)
    target: Diffusion = replace(SMALL, repeats=8).build(width=5, grid=(4, 4), patch_values=48)
    positions = torch.arange(16).expand(8, -1)
    squared, variational = target.terms(torch.randn(8, 16, 5), patches, positions, torch.arange(8))
    count = squared.numel() * 48
    assert squared.mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / count))  # five sigma
    assert variational is not None
    assert (variational > 0).all()


def test_the_network_may_see_all_patches_or_the_masked_ones_alone(objective: MAP, batch: Batch) -> None:
    state, patches, mask = states(objective, batch)
    target = diffusion(objective)
    everywhere = target.error(state, patches, torch.arange(15).expand(3, -1), batch.key)
    torch.testing.assert_close(objective(batch).total, everywhere[mask.masked].mean(), rtol=1e-5, atol=0)  # other summation
    assert everywhere.shape == (3, 15, 2)


def test_the_loss_on_all_patches_is_the_mean_over_all(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build(target=SMALL, loss_on="all", masking=Random.Config(ratio=0.0))
    state, patches, _ = states(objective, batch)
    everywhere = diffusion(objective).error(state, patches, torch.arange(15).expand(3, -1), batch.key)
    torch.testing.assert_close(objective(batch).total, everywhere.mean(), rtol=1e-5, atol=0)


def test_keys_decide_about_time_and_noise(objective: MAP, batch: Batch) -> None:
    state, patches, mask = states(objective, batch)
    target = diffusion(objective)
    loss = target.loss(state, patches, mask, batch.key)
    torch.manual_seed(99)
    assert torch.equal(target.loss(state, patches, mask, batch.key), loss)
    assert not torch.equal(target.loss(state, patches, mask, batch.key + 1), loss)
    key, clean = torch.arange(6000).view(60, 100), torch.zeros(60, 100, 1, 8)
    t, noise = target.draw(key, clean)
    assert t.shape == (60, 100, 2)
    assert noise.shape == (60, 100, 2, 8)
    assert (t[..., 0] != t[..., 1]).float().mean() > 0.99  # repeats are drawn one by one
    assert t.min() < 5
    assert t.max() > 994
    assert t.float().mean().item() == pytest.approx(499.5, abs=13)  # five sigma
    assert abs(torch.corrcoef(noise.flatten(2).flatten(0, 1).T).fill_diagonal_(0)).max() < 0.07  # five sigma
    assert noise.std().item() == pytest.approx(1, abs=0.012)
    assert abs(torch.corrcoef(torch.stack([t.flatten().float(), noise[..., 0].flatten()]))[0, 1]) < 0.05


def test_patches_of_one_image_are_noised_independently_of_one_another(objective: MAP) -> None:
    patches = partition(torch.zeros(1, 3, 12, 20), 4)
    target, state = diffusion(objective), torch.zeros(1, 15, 16)
    with torch.no_grad():
        target.pos_embed.zero_()
        error = target.error(state, patches, torch.arange(15)[None], torch.tensor([7]))
    assert error.unique().numel() == 30


def test_the_batch_may_be_split_anyhow(objective: MAP, batch: Batch) -> None:
    whole = objective(batch).total
    alone = [objective(replace(batch, inputs=batch.inputs[b : b + 1], key=batch.key[b : b + 1])).total for b in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), whole, rtol=1e-5, atol=0)


def test_without_learned_variances_the_loss_is_the_squared_error(build: Callable[..., MAP], batch: Batch) -> None:
    objective = build(target=replace(SMALL, learn_sigma=False))
    state, patches, mask = states(objective, batch)
    target = diffusion(objective)
    assert target.network.pred.out_features == 48
    squared, variational = target.terms(state, patches, torch.arange(15).expand(3, -1), batch.key)
    assert variational is None
    torch.testing.assert_close(target.loss(state, patches, mask, batch.key), squared[mask.masked].mean(), rtol=1e-5, atol=0)


def behaves(objective: MAP, batch: Batch) -> None:
    """What is masked reaches no sample, another key gives another sample, and every parameter learns."""
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    content = torch.where(mask.masked[..., None], 100 * torch.randn_like(patches.content), patches.content)
    size = objective.config.backbone.patch_size
    others = objective.backbone.partition(assemble(content, patches.source, patches.grid, size, 3))
    sampled = objective.predict(patches, mask, batch.key)
    assert sampled.shape == patches.content.shape
    assert torch.equal(objective.predict(others, mask, batch.key), sampled)
    assert not torch.equal(objective.predict(patches, mask, batch.key + 1), sampled)
    objective.train()(batch).total.backward()
    learning = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, grad in learning.items() if grad is None or not grad.isfinite().all()] == []
    for part in ("backbone.", "decoder.", "target."):
        assert any(name.startswith(part) and grad is not None and (grad != 0).any() for name, grad in learning.items())


@pytest.mark.parametrize("decoder_mask", ["ar", "mae", "local_mae", "map"])
def test_it_stands_on_backbones_under_every_decoder_mask(
    decoder_mask: DecoderMask, build: Callable[..., MAP], any_network: Backbone.Config, batch: Batch
) -> None:
    behaves(build(any_network, target=SMALL, decoder_mask=decoder_mask), batch)


@pytest.mark.parametrize("network", [MAMBAVISION, VMAMBA], ids=["mambavision", "vmamba"])
def test_it_stands_on_backbones_that_run_densely(network: Backbone.Config, build: Callable[..., MAP]) -> None:
    behaves(build(network, target=SMALL), Batch(inputs=torch.randn(2, 3, 64, 96), key=torch.arange(2)))


def test_pictures_need_no_key_and_are_the_same_every_time(objective: MAP, batch: Batch) -> None:
    patches = objective.backbone.partition(batch.inputs)
    mask = objective.draw(patches, batch)
    first = objective.predict(patches, mask)
    torch.manual_seed(99)
    assert torch.equal(objective.predict(patches, mask), first)
    assert not first.requires_grad
    assert not torch.equal(first[0], first[1])


def test_after_many_steps_on_one_image_the_samples_are_that_image() -> None:
    """The whole of it, decoder aside: what the network learned is what sampling gives back, in its place."""
    patches = partition(torch.rand(1, 1, 8, 8), 4)
    target: Diffusion = Diffusion.Config(width=64, depth=2, repeats=16, sampling_steps=20).build(
        width=8, grid=(2, 2), patch_values=16
    )
    state = torch.randn(1, 4, 8)
    optimizer = torch.optim.Adam(target.parameters(), lr=5e-3)
    for step in range(120):
        optimizer.zero_grad()
        target.loss(state, patches, None, torch.tensor([step])).backward()
        optimizer.step()
    wanted = target.pixels.values(patches)
    drawn = target.values_of(state, patches)
    assert (drawn - wanted).square().mean() < 0.15  # of a variance of 1; 0.05 where this was written
    torch.testing.assert_close(target.unnormalise(wanted, patches), patches.content)


def test_samples_of_an_untrained_network_are_values_that_a_patch_can_have(objective: MAP, batch: Batch) -> None:
    patches = objective.backbone.partition(batch.inputs)
    sampled = objective.predict(patches, objective.draw(patches, batch))
    assert sampled.abs().max() <= 47 / math.sqrt(48)
    extreme = torch.zeros(1, 1, 48)
    extreme[..., 7] = 1.0
    one_pixel = replace(patches, content=1e3 * extreme.expand(3, 15, -1))
    assert diffusion(objective).pixels.values(one_pixel).abs().max().item() == pytest.approx(47 / math.sqrt(48), rel=1e-6)


def test_larger_images_resample_the_positions(objective: MAP, batch: Batch) -> None:
    loss = objective(replace(batch, inputs=torch.randn(3, 3, 24, 40))).total
    assert loss.isfinite()


def test_the_loss_is_computed_in_float32_under_autocast_and_in_half_models(objective: MAP, batch: Batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(batch).total.dtype == torch.float32
    state, patches, mask = states(objective, batch)
    target = diffusion(objective).bfloat16()
    halved = target.loss(state.bfloat16(), patches, mask, batch.key)
    assert halved.dtype == torch.float32
    assert halved.isfinite()


def test_a_step_without_keys_is_refused(objective: MAP, batch: Batch) -> None:
    _, patches, mask = states(objective, batch)
    with pytest.raises(UserError, match=r"call step\(patches, mask, batch.key\)"):
        objective.step(patches, mask)


def test_a_loss_over_nothing_is_refused(objective: MAP, batch: Batch) -> None:
    state, patches, _ = states(objective, batch)
    nothing = Mask.from_masked(torch.zeros(3, 15, dtype=torch.bool))
    with pytest.raises(UserError, match="no patch is masked"):
        diffusion(objective).loss(state, patches, nothing, batch.key)


@pytest.mark.parametrize("field", ["width", "depth", "repeats"])
def test_sizes_below_one_are_refused(network: Backbone.Config, field: str) -> None:
    with pytest.raises(UserError, match=f"{field} of the diffusion loss must be at least 1, got 0"):
        MAP.Config(backbone=network, target=override(SMALL, {field: 0})).build()


def test_an_objective_without_a_state_to_hand_over_is_named() -> None:
    with pytest.raises(UserError, match="which only MAP hands over"):
        SMALL.build()


def test_the_backbone_goes_on_to_a_classifier_and_to_squared_error(objective: MAP, network: Backbone.Config) -> None:
    weights = objective.state_dict()
    backbone = {name for name in weights if name.startswith("backbone.")}
    report = Classification.Config(backbone=network, num_classes=7).build().initialise(weights)
    assert {name for name in backbone if "layers." in name} <= set(report.loaded)
    assert {name for name in weights if name.startswith("target.")} <= report.dropped.keys()
    plain: MAP = MAP.Config(backbone=network, decoder=MAPDecoder.Config(width=16, depth=2, num_heads=4)).build()
    assert set(plain.initialise(weights).loaded) == backbone
    assert set(objective.initialise(weights).loaded) == weights.keys()


def test_a_run_that_was_interrupted_ends_in_the_same_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = override(scale_down(find("map-diffusion-tiny")), {"train.steps": 4, "train.checkpoint_every": 2})
    train(recipe, tmp_path / "whole", device="cpu", loader=Loader)
    train(recipe, tmp_path / "parts", device="cpu", loader=Loader)
    finished = tmp_path / "parts" / "final.safetensors"
    finished.unlink()
    (tmp_path / "parts" / "checkpoints" / "step-00000004.safetensors").unlink()
    with caplog.at_level("INFO", "hybridmap.train"):
        train(recipe, tmp_path / "parts", device="cpu", loader=Loader)
    assert "at step 2 of 4" in caplog.text
    assert finished.read_bytes() == (tmp_path / "whole" / "final.safetensors").read_bytes()


COMPILED = """
import torch
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.objectives.decoder import MAPDecoder
from hybridmap.objectives.map import MAP
from hybridmap.objectives.targets import Diffusion
from hybridmap.types import Batch

torch.manual_seed(0)
network = HybridNet.Config(img_size=(12, 20), patch_size=4, embed_dim=16, layout="MT", num_heads=2)
decoder, target = MAPDecoder.Config(width=16, depth=1, num_heads=2), Diffusion.Config(width=16, depth=1, repeats=2)
objective = MAP.Config(backbone=network, decoder=decoder, target=target).build()
batch = Batch(inputs=torch.randn(2, 3, 12, 20), key=torch.tensor([1, 2]))
patches = objective.backbone.partition(batch.inputs)
mask = objective.draw(patches, batch)
plain = objective.step(patches, mask, batch.key).total
compiled = torch.compile(objective.step, backend="aot_eager", fullgraph=True)(patches, mask, batch.key).total
torch.testing.assert_close(compiled, plain)
compiled.backward()
assert objective.target.network.pred.weight.grad.abs().sum() > 0
"""


@pytest.mark.slow
def test_a_step_compiles_as_one_graph(unchecked_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILED], capture_output=True, text=True, env=unchecked_environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
