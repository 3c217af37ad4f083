"""Diffusion of single vectors: noise is added in T steps, and a small network, told what to expect, takes it out again.

    x_0 ──────▶ x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise          abar_t: product of 1 - beta up to step t
                 │
     t, state ──▶ network ──▶ noise', v       log variance of a step back = v' log beta + (1 - v') log beta~,  v' = (v + 1) / 2

The process knows betas and no network, the network knows no process. Patches and images do not occur here; what is compared
with what stands in :class:`hybridmap.objectives.targets.Diffusion`.
Sources: DDPM (arXiv:2006.11239), learned variances (arXiv:2102.09672), MAR for the network and its use as a loss
(arXiv:2406.11838).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybridmap.errors import UserError


class Process:
    """A chain of T noising steps, t = 0 .. T-1, and the way back. Tables are float64 on the CPU; vectors keep their dtype.

    The way back reads the output of a network: the noise it expects, C channels, and behind them, if there are 2 C, where the
    log variance of each channel lies between that of the true step back (-1) and that of the step forward (1). With C channels
    the variance is that of the step forward.
    """

    def __init__(self, betas: Float[Tensor, "T"], times: Int[Tensor, "T"] | None = None) -> None:
        """``betas`` are the variances of the steps, ``times`` what the network is told instead of t; by default t itself."""
        betas = betas.double()
        self.times = torch.arange(len(betas), device="cpu") if times is None else times
        self.kept = (1 - betas).cumprod(0)  # abar_t
        before = F.pad(self.kept[:-1], (1, 0), value=1.0)  # abar_{t-1}
        self.log_beta = betas.log()
        self.posterior_clean = betas * before.sqrt() / (1 - self.kept)  # mean of the true step back = this x_0 + the next x_t
        self.posterior_noisy = (1 - before) * (1 - betas).sqrt() / (1 - self.kept)
        # The first true step back is certain; the logarithm of its variance is replaced by that of the second one.
        variance = betas * (1 - before) / (1 - self.kept)
        self.log_posterior = torch.cat([variance[1:2], variance[1:]]).log()

    def __len__(self) -> int:
        return len(self.times)

    @classmethod
    def cosine(cls, steps: int = 1000) -> Process:
        """abar(s) = cos^2((s + 0.008) / 1.008 * pi/2), s from 0 to 1, no beta above 0.999. Source: arXiv:2102.09672, eq. 17."""
        place = (torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps + 0.008) / 1.008
        kept = (place * math.pi / 2).cos().square()
        return cls((1 - kept[1:] / kept[:-1]).clamp(max=0.999))

    def thinned(self, steps: int) -> Process:
        """The same chain in fewer, evenly spaced steps, the first and the last among them, for sampling.

        Raises:
            UserError: unless 2 <= steps <= T.
        """
        if not 2 <= steps <= len(self):
            raise UserError(f"the number of sampling steps must lie between 2 and {len(self)}, got {steps}; try 100")
        chosen = torch.tensor([round(i * (len(self) - 1) / (steps - 1)) for i in range(steps)], device="cpu")
        kept = self.kept[chosen]
        return Process(1 - kept / F.pad(kept[:-1], (1, 0), value=1.0), self.times[chosen])

    def noised(
        self, clean: Float[Tensor, "*#M C"], t: Int[Tensor, "*M"], noise: Float[Tensor, "*M C"]
    ) -> Float[Tensor, "*M C"]:
        """x_t: clean vectors behind step ``t``."""
        return _at(self.kept.sqrt(), t, noise) * clean + _at((1 - self.kept).sqrt(), t, noise) * noise

    def expected(self, out: Float[Tensor, "*M O"], noisy: Float[Tensor, "*M C"], t: Int[Tensor, "*M"]) -> Float[Tensor, "*M C"]:
        """x_0 as a network's output has it."""
        noise = out[..., : noisy.shape[-1]]
        return _at(self.kept.rsqrt(), t, noisy) * noisy - _at((1 / self.kept - 1).sqrt(), t, noisy) * noise

    def step_back(
        self, clean: Float[Tensor, "*#M C"], noisy: Float[Tensor, "*M C"], t: Int[Tensor, "*M"]
    ) -> Float[Tensor, "*M C"]:
        """Mean of x_{t-1}, given x_0 and x_t."""
        return _at(self.posterior_clean, t, noisy) * clean + _at(self.posterior_noisy, t, noisy) * noisy

    def log_variance(
        self, out: Float[Tensor, "*M O"], noisy: Float[Tensor, "*M C"], t: Int[Tensor, "*M"]
    ) -> Float[Tensor, "*M #C"]:
        """Of a step back, as a network's output has it."""
        highest = _at(self.log_beta, t, noisy)
        channels = noisy.shape[-1]
        if out.shape[-1] == channels:
            return highest
        share = (out[..., channels:] + 1) / 2
        return share * highest + (1 - share) * _at(self.log_posterior, t, noisy)

    def variational(
        self, out: Float[Tensor, "*M O"], clean: Float[Tensor, "*#M C"], noisy: Float[Tensor, "*M C"], t: Int[Tensor, "*M"]
    ) -> Float[Tensor, "*M"]:
        """The term of the variational bound that belongs to step ``t``, in bits per channel: it teaches the variance alone.

        The divergence of the network's step back from the true one; at t = 0 the negative log-likelihood of x_0 in bins of
        1/127.5, which presumes values in [-1, 1]. No gradient reaches the expected noise.
        Source: arXiv:2102.09672, section 3.1.
        """
        frozen = torch.cat([out[..., : noisy.shape[-1]].detach(), out[..., noisy.shape[-1] :]], dim=-1)
        mean = self.step_back(self.expected(frozen, noisy, t), noisy, t)
        log_variance = self.log_variance(frozen, noisy, t)
        true_mean, true_log_variance = self.step_back(clean, noisy, t), _at(self.log_posterior, t, noisy)
        divergence = 0.5 * (
            log_variance
            - true_log_variance
            + (true_log_variance - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
            - 1
        )
        first = _bin_likelihood(clean, mean, log_variance / 2)
        nats = torch.where(t == 0, first.mean(-1), divergence.mean(-1))
        return nats / math.log(2)

    def sample(
        self,
        network: Callable[[Float[Tensor, "*M C"], Int[Tensor, "*M"]], Float[Tensor, "*M O"]],
        noise: Float[Tensor, "*M C"],
        step_noise: Callable[[int], Float[Tensor, "*M C"]],
        *,
        temperature: float = 1.0,
        bound: float | None = None,
    ) -> Float[Tensor, "*M C"]:
        """Draw x_0 by T steps back from pure ``noise``.

        Args:
            network: (x_t, what it is told for t) -> its output.
            noise: x_T, standard normal.
            step_noise: number of the step in the order in which they are taken, 0 .. T-1 -> standard normal noise. That of the
                last step is not used.
            temperature: factor on the noise of the steps.
            bound: where given, every expected x_0 is clamped to [-bound, bound].
        """
        x = noise
        for taken, step in enumerate(reversed(range(len(self)))):
            t = torch.full(x.shape[:-1], step, device=x.device)
            out = network(x, torch.full_like(t, int(self.times[step])))
            clean = self.expected(out, x, t)
            mean = self.step_back(clean if bound is None else clean.clamp(-bound, bound), x, t)
            x = mean + (self.log_variance(out, x, t) / 2).exp() * step_noise(taken) * temperature if step else mean
        return x


class Denoiser(nn.Module):
    """A residual network that is told the step and a condition at every layer. It starts as the constant 0.

        told = SiLU(MLP(cosines and sines of t) + Linear(condition))
        h    = Linear(x);  per layer  h += gate * MLP(norm(h) * (1 + scale) + shift)        shift, scale, gate = Linear(told)
        out  = Linear(norm(h) * (1 + scale) + shift)                                        shift, scale = Linear(told)

    Source: MAR (arXiv:2406.11838), its small MLP; the modulation is that of DiT (arXiv:2212.09748).
    """

    eps = 1e-6
    """Of all norms."""

    def __init__(self, channels: int, condition: int, *, outputs: int, width: int, depth: int) -> None:
        """``channels`` of the vectors, width of the ``condition``, ``outputs`` (C, or 2 C with variances)."""
        super().__init__()
        self.frequencies = 10000.0 ** (-torch.arange(128, dtype=torch.float64, device="cpu") / 128)
        self.time = nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition, width)
        self.embed = nn.Linear(channels, width)
        self.layers = nn.ModuleList(_Layer(width, self.eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, self.eps, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.pred = nn.Linear(width, outputs)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier without biases, small normal weights where time comes in, zero for modulations and the last map."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (module for module in self.time if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
        modulations = [part.modulation for part in self.modules() if isinstance(part, (_Layer, Denoiser))]
        for linear in (*modulations, self.pred):
            nn.init.zeros_(linear.weight)

    def forward(
        self, noisy: Float[Tensor, "*M C"], t: Int[Tensor, "*M"], condition: Float[Tensor, "*#M W"]
    ) -> Float[Tensor, "*M O"]:
        """The expected noise, and variances where there are outputs for them (:class:`Process`)."""
        dtype = self.embed.weight.dtype
        told = F.silu(self.time(self._waves(t).to(dtype)) + self.condition(condition))
        x = self.embed(noisy.to(dtype))
        for layer in self.layers:
            x = layer(x, told)
        shift, scale = self.modulation(told).chunk(2, dim=-1)
        return self.pred(self.norm(x) * (1 + scale) + shift)

    def _waves(self, t: Int[Tensor, "*M"]) -> Float[Tensor, "*M F"]:
        """cos(t w_i), then sin(t w_i), in at least float32."""
        exact = torch.promote_types(self.embed.weight.dtype, torch.float32)
        angles = t[..., None] * self.frequencies.to(exact).to(t.device)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _Layer(nn.Module):
    """Modulated norm, two linear maps, gated addition."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Float[Tensor, "*M W"], told: Float[Tensor, "*M W"]) -> Float[Tensor, "*M W"]:
        shift, scale, gate = self.modulation(told).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


def _at(table: Float[Tensor, "T"], t: Int[Tensor, "*M"], like: Float[Tensor, "*M C"]) -> Float[Tensor, "*M 1"]:
    """Entries of a table, for vectors. The dtype comes first, since not every device has float64; nobody waits for the copy."""
    return table.to(like.dtype).to(like.device, non_blocking=True)[t][..., None]


def _bin_likelihood(
    x: Float[Tensor, "*#M C"], mean: Float[Tensor, "*M C"], log_std: Float[Tensor, "*M #C"]
) -> Float[Tensor, "*M C"]:
    """Negative log-likelihood in nats of values that are known up to 1/255, the outermost bins being open to infinity."""

    def below(y: Tensor) -> Tensor:
        """The normal distribution function in its customary approximation by tanh, which the sources use."""
        return 0.5 * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())

    upper, lower = (below((x - mean + half) * (-log_std).exp()) for half in (1 / 255, -1 / 255))
    inside = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -inside.clamp(min=1e-12).log()
