"""Networks: backbone, pre-training and heads. Importing them registers them."""

from implantdet.modeling.backbone import SimpleFeaturePyramid
from implantdet.modeling.implant_roi_heads import CascadeImplantROIHeads, ImplantROIHeads
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.part_predictor import PartPredictor
from implantdet.modeling.vit import ViT
from implantdet.modeling.weights import load_backbone_weights

__all__ = [
    "CascadeImplantROIHeads",
    "ImplantROIHeads",
    "MaskedImageModel",
    "PartPredictor",
    "SimpleFeaturePyramid",
    "ViT",
    "load_backbone_weights",
]
