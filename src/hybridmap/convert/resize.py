"""The same weights for another image size: whatever a network stores per position is resampled to the new grid."""

from __future__ import annotations

from dataclasses import replace

from hybridmap.convert.origin import Loaded
from hybridmap.errors import UserError
from hybridmap.layers.pos_embed import resample

DECODER_POSITIONS = "decoder.pos_embed"


def resized(loaded: Loaded, img_size: int | tuple[int, int]) -> Loaded:
    """Weights and configuration for images of ``img_size`` pixels, by the backbone's own rule (``set_input_size``).

    A pretraining decoder's positions follow the backbone's grid.

    Raises:
        UserError: if it is not known which network the weights belong to, or the size does not suit it.
    """
    if loaded.config is None:
        raise UserError("positions can be resampled only where the file says which backbone it is of; leave the size out")
    backbone = loaded.config.build()
    backbone.load_state_dict(loaded.backbone)
    before = backbone.grid
    backbone.set_input_size(img_size)
    weights = loaded.weights | backbone.state_dict()
    if DECODER_POSITIONS in weights:
        weights[DECODER_POSITIONS] = resample(weights[DECODER_POSITIONS], before, backbone.grid).contiguous()
    return replace(loaded, weights=weights, config=backbone.config)
