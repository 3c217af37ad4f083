"""The drop-in module ``Mamba``: a whole sequence at once, and the same sequence by prefill and single steps."""

from __future__ import annotations

import torch

from hybridmap.layers import Mamba
from hybridmap.layers.mamba import InferenceParams
from parity_harness.recording import Recording


def mamba_module(rec: Recording) -> None:
    module = Mamba(**rec.config["args"], layer_idx=0).to(rec.dtype)
    module.load_state_dict(rec.state(), strict=True)
    module.eval()
    x, cotangent = rec.input("x"), rec.input("cotangent")

    out = module(x)
    loss = (out * cotangent).sum()
    rec.check("output.out", out)
    rec.check("output.loss", loss)
    loss.backward()
    rec.check_gradients({name: p.grad for name, p in module.named_parameters() if p.grad is not None})

    batch, length, _ = x.shape
    prefill = rec.config["prefill"]
    with torch.no_grad():
        params = InferenceParams(max_seqlen=length, max_batch_size=batch)
        params.key_value_memory_dict[0] = module.allocate_inference_cache(batch, length, dtype=rec.dtype)
        steps = [module(x[:, :prefill], inference_params=params)]
        conv_state, ssm_state = params.key_value_memory_dict[0]
        rec.check("output.conv_state_prefill", conv_state)
        rec.check("output.ssm_state_prefill", ssm_state)
        for t in range(prefill, length):
            params.seqlen_offset = t
            steps.append(module(x[:, t : t + 1], inference_params=params))
        rec.check("output.step_out", torch.cat(steps, dim=1))
        rec.check("output.conv_state", conv_state)
        rec.check("output.ssm_state", ssm_state)
