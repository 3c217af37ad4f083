"""What predictions are compared with."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap import config as configuration
from hybridmap.config import Configurable
from hybridmap.errors import UserError
from hybridmap.hashing import derive, normal, uniform
from hybridmap.layers.pos_embed import resample
from hybridmap.objectives.diffusion import Denoiser, Process
from hybridmap.tokens.select import take
from hybridmap.types import Mask, Patches

_STREAM = 0x64696666


class Target(Configurable):
    """Abstract: what is predicted for each patch, and how far a prediction is from it.

    An objective that can hand over the decoder's state (:attr:`of_state`) builds it with the ``width`` of the decoder, the
    ``grid`` (rows, columns) of stored positions and ``patch_values`` P, for targets that bring a network along.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configuration.Config):
        """Fields that all targets have: none."""

    config: Any
    of_state: ClassVar[bool] = False
    """Whether it wants the decoder's last state (B N W) where others want predicted values of the patches (B N P)."""

    @abstractmethod
    def loss(
        self, pred: Float[Tensor, "B N O"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean over the masked patches, each with the same weight; over all patches without a mask.

        ``pred`` is what the decoder returned. ``key`` names the samples, for targets that draw something.

        Raises:
            UserError: if the mask hides nothing.
        """

    @abstractmethod
    def values_of(
        self, pred: Float[Tensor, "B N O"], patches: Patches, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B N P"]:
        """What the decoder's output says about every patch, on the target's scale. ``key``: as in :meth:`loss`."""

    @abstractmethod
    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        """Predictions on the scale of ``patches.content``, for pictures; looks at the true patches where it must."""


class Pixels(Target):
    """The pixels of a patch, normalised by the mean and the deviation of that patch; squared error.

    ``target = (x - mean) / sqrt(variance + 1e-6)`` over the P values of a patch, with the unbiased variance (divisor P - 1);
    the loss of a patch is the mean over its values. Both are computed in at least float32, whatever the prediction comes in.
    Source: MAE (arXiv:2111.06377); facebookresearch/mae:models_mae.py, yunzeliu/MAP:models_mamba.py.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Target.Config):
        normalise: bool = True
        """Normalise every patch; otherwise its pixels are compared as they are."""

    config: Pixels.Config

    def values(self, patches: Patches) -> Float[Tensor, "B N P"]:
        """The targets of all patches, by position in the scan.

        Raises:
            UserError: if a patch holds a single value, which has no deviation.
        """
        x = exact(patches.content)
        if not self.config.normalise:
            return x
        mean, deviation = self._moments(x)
        return (x - mean) / deviation

    def loss(
        self, pred: Float[Tensor, "B N P"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        error = (exact(pred) - self.values(patches)).square().mean(-1)  # (B, N)
        if mask is None:
            return error.mean()
        return error.masked_fill(~mask.masked, 0.0).sum() / (len(error) * masked_count(mask))

    def values_of(
        self, pred: Float[Tensor, "B N P"], patches: Patches, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B N P"]:
        return pred

    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        if not self.config.normalise:
            return exact(pred)
        mean, deviation = self._moments(exact(patches.content))
        return exact(pred) * deviation + mean

    def _moments(self, x: Float[Tensor, "B N P"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
        if x.shape[-1] < 2:
            raise UserError("patches of a single value cannot be normalised; use larger patches or normalise=False")
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        return mean, (variance + 1e-6).sqrt()


class Diffusion(nn.Module, Target):
    """The same normalised pixels, not as one guess but as a distribution: a small network learns to take noise out of them.

    The decoder's state of a patch, plus a learned position, is the condition; the target of a patch is noised to ``repeats``
    random steps of a cosine schedule of 1000, and the loss of a patch is the squared error of the expected noise plus the
    variational term of the learned variance. Patches are independent of one another given their states, so patches of a sampled
    picture need not fit together. Steps and noise follow from the sample's key and the patch's place in the scan: they are the
    same in every split of the batch, and only masked patches are passed through the network.

    Source: MAR (arXiv:2406.11838) for the loss and its settings; MAP (arXiv:2410.00871), section 4 and Table 7, for its use on
    MAP's decoder. Differs from source: pixels, normalised patch by patch, in place of the latents of an autoencoder.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Target.Config):
        width: int = 1024
        """Width of the network."""
        depth: int = 3
        """Residual layers of the network."""
        repeats: int = 4
        """How often each patch is noised in a step, at independent times with independent noise."""
        learn_sigma: bool = True
        """Learn the variance of a step back as well. Its term at the very first step presumes values in [-1, 1], which
        normalised pixels exceed; without it that term is gone, and sampling uses the variance of the step forward."""
        sampling_steps: int = 100
        """Steps back for pictures, of the 1000."""

        def small(self) -> Any:
            """One layer of width 32."""
            return replace(self, width=32, depth=1)

    config: Diffusion.Config
    of_state = True

    def __init__(
        self, config: Diffusion.Config, *, width: int = 0, grid: tuple[int, int] = (0, 0), patch_values: int = 0
    ) -> None:
        nn.Module.__init__(self)
        self.config = config
        if not width:
            raise UserError(
                "the diffusion loss reads the decoder's state, which only MAP hands over; use MAP, or the target Pixels"
            )
        for name in ("width", "depth", "repeats"):
            if getattr(config, name) < 1:
                raise UserError(f"{name} of the diffusion loss must be at least 1, got {getattr(config, name)}")
        self.process = Process.cosine()
        self.sampling = self.process.thinned(config.sampling_steps)
        self.pixels: Pixels = Pixels.Config().build()
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))
        nn.init.normal_(self.pos_embed, std=0.02)
        outputs = patch_values * (2 if config.learn_sigma else 1)
        self.network = Denoiser(patch_values, width, outputs=outputs, width=config.width, depth=config.depth)

    def loss(
        self, pred: Float[Tensor, "B N W"], patches: Patches, mask: Mask | None, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, ""]:
        """Mean over the masked patches and their repeats.

        Raises:
            UserError: if the mask hides nothing, or without a key, since every step would draw the same noise.
        """
        if key is None:
            raise UserError("the diffusion loss draws noise from the keys of the samples; call step(patches, mask, batch.key)")
        return self.error(pred, patches, predicted_positions(patches, mask), key).mean()

    def error(
        self, state: Float[Tensor, "B N W"], patches: Patches, positions: Int[Tensor, "B M"], key: Int[Tensor, "B"]
    ) -> Float[Tensor, "B M R"]:
        """Loss of the patches at some positions of the scan, once for each repeat."""
        squared, variational = self.terms(state, patches, positions, key)
        return squared if variational is None else squared + variational

    def terms(
        self, state: Float[Tensor, "B N W"], patches: Patches, positions: Int[Tensor, "B M"], key: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B M R"], Float[Tensor, "B M R"] | None]:
        """The squared error of the noise, and the variational term in bits, which is None without learned variances."""
        clean = take(self.pixels.values(patches), positions)[:, :, None]  # (B, M, 1, P)
        t, noise = self.draw(derive(key, positions, _STREAM), clean)
        noisy = self.process.noised(clean, t, noise)
        out = exact(self.network(noisy, t, self.condition(state, patches, positions)[:, :, None]))
        squared = (noise - out[..., : clean.shape[-1]]).square().mean(-1)
        return squared, self.process.variational(out, clean, noisy, t) if self.config.learn_sigma else None

    def draw(
        self, key: Int[Tensor, "B M"], clean: Float[Tensor, "B M 1 P"]
    ) -> tuple[Int[Tensor, "B M R"], Float[Tensor, "B M R P"]]:
        """Times and noise for every repeat, from a key for every patch."""
        repeats, shape = self.config.repeats, key.shape
        t = (uniform(key.flatten(), repeats, _STREAM) * len(self.process)).long().unflatten(0, shape)
        noise = normal(key.flatten(), repeats * clean.shape[-1], _STREAM + 1).to(clean.dtype)
        return t, noise.unflatten(1, (repeats, -1)).unflatten(0, shape)

    def condition(
        self, state: Float[Tensor, "B N W"], patches: Patches, positions: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M W"]:
        """What the network is told about the patches at some positions of the scan."""
        table = resample(self.pos_embed, self.grid, patches.grid or self.grid)
        return take(state, positions) + F.embedding(take(patches.source, positions), table[0])

    @torch.no_grad()  # a picture: a hundred passes through the network, which nobody differentiates
    def values_of(
        self, pred: Float[Tensor, "B N W"], patches: Patches, key: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B N P"]:
        """One sample of every patch. Without a key the noise follows from the place in the batch."""
        positions = predicted_positions(patches, None)
        key = torch.arange(len(positions), device=positions.device) if key is None else key
        token_key = derive(key, positions, _STREAM)
        condition = self.condition(pred, patches, positions)
        clean = exact(patches.content)

        def noise(step: int) -> Float[Tensor, "B N P"]:
            drawn = normal(token_key.flatten(), clean.shape[-1], _STREAM + 2 + step)
            return drawn.to(clean.dtype).unflatten(0, positions.shape)

        def network(x: Tensor, t: Tensor) -> Tensor:
            return exact(self.network(x, t, condition))

        # No P values of mean 0 and variance 1 have a larger one among them. Without a bound a small error of the network at the
        # last times, where x_0 is 20 000 times the difference to the expected noise, leads far away from all it was trained on.
        bound = (clean.shape[-1] - 1) / math.sqrt(clean.shape[-1])
        return self.sampling.sample(network, noise(len(self.sampling)), noise, bound=bound)

    def unnormalise(self, pred: Float[Tensor, "B N P"], patches: Patches) -> Float[Tensor, "B N P"]:
        return self.pixels.unnormalise(pred, patches)


def masked_count(mask: Mask) -> int:
    """Masked patches of each sample, counted on the host.

    Raises:
        UserError: if there are none.
    """
    count = mask.masked.shape[1] - mask.visible.shape[1]
    if count == 0:
        raise UserError('no patch is masked, and the loss is over masked patches; use loss_on="all" with a mask ratio of 0')
    return count


def exact(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def predicted_positions(patches: Patches, mask: Mask | None) -> Int[Tensor, "B M"]:
    """Of the masked patches, ascending; of all without a mask."""
    if mask is None:
        batch, count = patches.source.shape
        return torch.arange(count, device=patches.source.device).expand(batch, -1)
    return (~mask.masked).to(torch.uint8).argsort(dim=1, stable=True)[:, : masked_count(mask)]
