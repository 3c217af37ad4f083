"""Masked autoregressive pretraining (MAP) of hybrid Mamba-Transformer vision backbones, on any machine."""
