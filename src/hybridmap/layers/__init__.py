"""Layers: ``nn.Module``s with flat keyword arguments, usable without the rest of the project."""

from hybridmap.layers.attention import Attention, CrossAttention
from hybridmap.layers.block import CrossBlock, MambaBlock, MambaMlpBlock, Stack, TransformerBlock
from hybridmap.layers.mamba import InferenceParams, Mamba, MambaMixer
from hybridmap.layers.mambavision import MambaVisionMixer
from hybridmap.layers.norm import AddNorm
from hybridmap.layers.pos_embed import resample, sincos_2d
from hybridmap.layers.registers import Registers
from hybridmap.layers.rotary import Rotary
from hybridmap.layers.swiglu import SwiGLU

__all__ = [
    "AddNorm",
    "Attention",
    "CrossAttention",
    "CrossBlock",
    "InferenceParams",
    "Mamba",
    "MambaBlock",
    "MambaMixer",
    "MambaMlpBlock",
    "MambaVisionMixer",
    "Registers",
    "Rotary",
    "Stack",
    "SwiGLU",
    "TransformerBlock",
    "resample",
    "sincos_2d",
]
