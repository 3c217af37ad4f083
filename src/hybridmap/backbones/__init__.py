"""Backbones: inputs -> features. Importing this package adds our names to timm's registry."""

from hybridmap.backbones.arm import ARM
from hybridmap.backbones.base import Backbone
from hybridmap.backbones.hybrid import HybridNet
from hybridmap.backbones.mambavision import MambaVision
from hybridmap.backbones.names import create_backbone, find
from hybridmap.backbones.vim import Vim
from hybridmap.backbones.vit import ViT

__all__ = ["ARM", "Backbone", "HybridNet", "MambaVision", "ViT", "Vim", "create_backbone", "find"]
