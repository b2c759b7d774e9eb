"""The backbone of the detector: a plain ViT under a simple feature pyramid (ViTDet, arXiv:2203.16527)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import vit as d2_vit
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from timm.layers import LayerNorm2d

from implantdet.modeling.vit import OUT_FEATURE, ViT


class SimpleFeaturePyramid(d2_vit.SimpleFeaturePyramid):
    """Detectron2's pyramid, with ``padding_constraints`` that Detectron2's ``ImageList`` understands, in float32."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (N, C, H, W) of every level for images (N, C, H, W)."""
        # Poolers cast boxes to the type of the maps. In mixed precision on the CPU that would be bfloat16, in which an
        # edge beyond 128 moves to a whole pixel.
        return {level: features.float() for level, features in super().forward(x).items()}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Images are padded to a multiple of the coarsest stride of the pyramid's convolutions."""
        # Detectron2 returns the key `size_divisiblity`, which nothing reads.
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


@BACKBONE_REGISTRY.register()
def build_vit_sfp_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Build the ViT of ``cfg.MODEL.VIT`` with the pyramid levels p2 to p6, of strides 4 to 64.

    Args:
        cfg: a Detectron2 config with the keys of ``add_implantdet_config``.
        input_shape: its channels are the channels of the images; Detectron2 passes ``len(cfg.MODEL.PIXEL_MEAN)``.
    """
    return build_pyramid(ViT(cfg, input_shape), cfg.MODEL.VIT.PYRAMID_CHANNELS)


def build_pyramid(vit: ViT, out_channels: int) -> SimpleFeaturePyramid:
    """Put p2 to p6 on top of a ViT."""
    pyramid = SimpleFeaturePyramid(
        net=vit,
        in_feature=OUT_FEATURE,
        out_channels=out_channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        # The same function and parameters as Detectron2's "LN", in one fused kernel.
        norm=LayerNorm2d,
    )
    # The ViT's map is channels-last by nature, and the fused norm wants it so: with such weights nothing is permuted.
    return pyramid.to(memory_format=torch.channels_last)
