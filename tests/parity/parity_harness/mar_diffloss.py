"""The diffusion loss of MAR: network, noising, both terms of the loss, sampling with and without guidance."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from hybridmap.objectives.diffusion import Denoiser, Process
from parity_harness.recording import Recording

RENAMED = {
    r"net\.time_embed\.mlp\.": "time.",
    r"net\.cond_embed\.": "condition.",
    r"net\.input_proj\.": "embed.",
    r"net\.res_blocks\.(\d+)\.in_ln\.": r"layers.\1.norm.",
    r"net\.res_blocks\.(\d+)\.mlp\.": r"layers.\1.mlp.",
    r"net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.": r"layers.\1.modulation.",
    r"net\.final_layer\.linear\.": "pred.",
    r"net\.final_layer\.adaLN_modulation\.1\.": "modulation.",
}
"""Official beginning of a name -> ours."""


ONE_ULP_UP = (13, 44, 119)
"""Frequencies that the recording machine rounded up by one unit in the last place; see :func:`recorded_frequencies`."""


def recorded_frequencies() -> Tensor:
    """The frequencies of the time features as the official code had them, also in its float64 run: exponentials in float32.

    Their last bit depends on the processor. The recording does not hold them; that they are the correctly rounded ones but for
    the three above was found by turning single bits until the recorded float64 output of the network was met (to 2e-15, from
    1e-7). Outputs at t = 0, where they do not matter, agree to 1e-15 with any frequencies.
    """
    exponents = torch.arange(128, dtype=torch.float32) * -math.log(10000.0) / 128
    found = torch.tensor([math.exp(x) for x in exponents.tolist()], dtype=torch.float32)
    found[list(ONE_ULP_UP)] = torch.nextafter(found[list(ONE_ULP_UP)], torch.tensor(1.0))
    return found.double()


def our_name(official: str) -> str:
    found = [re.sub(pattern, ours, official) for pattern, ours in RENAMED.items() if re.match(pattern, official)]
    assert len(found) == 1, f"the harness does not know the official parameter {official}"
    return found[0]


def mar_diffloss(rec: Recording) -> None:
    args, config = rec.config["args"], rec.config
    assert args.keys() == {"target_channels", "z_channels", "depth", "width", "num_sampling_steps"}
    channels = args["target_channels"]
    network = Denoiser(channels, args["z_channels"], outputs=2 * channels, width=args["width"], depth=args["depth"])
    state = rec.state()
    network.load_state_dict({our_name(name): value for name, value in state.items()}, strict=True)
    network.frequencies = recorded_frequencies()
    network.to(rec.dtype).eval()
    process = Process.cosine()

    clean, z, t, noise, weight = (rec.input(name) for name in ("target", "z", "t", "noise", "mask"))
    rec.check("output.net", network(clean, t, z))
    noisy = process.noised(clean, t, noise)
    rec.check("output.x_t", noisy)
    out = network(noisy, t, z)
    squared = (noise - out[:, :channels]).square().mean(-1)
    rec.check("output.mse", squared)
    variational = process.variational(out, clean, noisy, t)
    rec.check("output.vb", variational)
    loss = ((squared + variational) * weight).sum() / weight.sum()
    rec.check("output.loss", loss)
    loss.backward()
    ours = dict(network.named_parameters())
    gradients = {name: ours[our_name(name)].grad for name in state}
    rec.check_gradients({name: gradient for name, gradient in gradients.items() if gradient is not None})

    steps, start = rec.input("step_noise"), rec.input("init_noise")
    few = process.thinned(int(args["num_sampling_steps"]))

    def guided(x: Tensor, t: Tensor) -> Tensor:
        """Both halves of the batch hold the same vectors; the first is told the condition, the second none."""
        half = x[: len(x) // 2]
        out = network(torch.cat([half, half]), t, z)
        with_condition, without = out[:, :channels].chunk(2)
        noise = without + config["cfg_scale"] * (with_condition - without)
        return torch.cat([torch.cat([noise, noise]), out[:, channels:]], dim=1)

    with torch.no_grad():
        drawn = few.sample(lambda x, t: network(x, t, z), start, steps.__getitem__, temperature=config["temperature"])
        rec.check("output.sample", drawn)
        half = start[: len(start) // 2]
        rec.check("output.sample_cfg", few.sample(guided, torch.cat([half, half]), steps.__getitem__))
