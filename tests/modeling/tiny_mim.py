"""A masked image model that is built in no time."""

import torch

from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_decoder import build_decoder
from implantdet.modeling.mim_targets import build_target
from implantdet.modeling.vit import ViT

GRID = (4, 4)
TARGETS = {"pixel": {}, "patch_embed": {}, "encoder": {"layers": [2, 5], "ema_decay": 0.9}}


def tiny_model(target="pixel", depth=2, in_chans=1, seed=0, layers=(), ema_decay=0.9, **kwargs):
    torch.manual_seed(seed)
    encoder = ViT(name="test_vit", img_size=64, in_chans=in_chans)
    built = build_target(target, encoder, in_chans, layers or TARGETS[target].get("layers", ()), ema_decay)
    out_dim = built.dim + (256 * in_chans if kwargs.get("pixel_weight") else 0)
    stats = {"pixel_mean": [100.0] * in_chans, "pixel_std": [50.0] * in_chans}
    decoder = build_decoder(encoder, out_dim, dim=32, depth=depth, num_heads=4)
    return MaskedImageModel(encoder=encoder, decoder=decoder, target=built, **stats, **kwargs)
