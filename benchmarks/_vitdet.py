"""Detectron2's own ViT and pyramid, to compare with: its ViTDet recipe (arXiv:2203.16527) in the size of a timm ViT."""

from __future__ import annotations

from functools import partial

import timm
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from torch import nn


@BACKBONE_REGISTRY.register()
def vitdet(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Window attention of 14 patches with four global blocks, and relative positions, as Detectron2's ViTDet configs.

    Width, depth and heads are those of ``MODEL.VIT.NAME``.
    """
    model = timm.create_model(cfg.MODEL.VIT.NAME)
    depth = len(model.blocks)
    vit = ViT(
        img_size=cfg.MODEL.VIT.IMG_SIZE,
        in_chans=input_shape.channels,
        embed_dim=model.embed_dim,
        depth=depth,
        num_heads=model.blocks[0].attn.num_heads,
        drop_path_rate=cfg.MODEL.VIT.DROP_PATH_RATE,
        window_size=14,
        window_block_indexes=[index for index in range(depth) if (index + 1) % (depth // 4 or 1)],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        out_feature="last_feat",
    )
    return SimpleFeaturePyramid(
        net=vit,
        in_feature="last_feat",
        out_channels=cfg.MODEL.VIT.PYRAMID_CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=cfg.MODEL.VIT.IMG_SIZE,
    )
