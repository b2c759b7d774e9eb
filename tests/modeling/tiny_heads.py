"""Small ROI heads, and the boxes that they learn: two categories on one box, and a third elsewhere."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, Instances

from implantdet.config import add_implantdet_config
from implantdet.modeling import backbone, implant_roi_heads  # noqa: F401  both register what the configs name

SIZE, CLASSES, CHANNELS = 64, 3, 8
HEADS = ["ImplantROIHeads", "CascadeImplantROIHeads"]
# Two categories on one box, and a third elsewhere.
TWICE, OTHER = [12.0, 10.0, 28.0, 50.0], [40.0, 20.0, 56.0, 40.0]


def tiny_config(heads="ImplantROIHeads", *options):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [110.0], [60.0]
    cfg.MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"
    cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE, cfg.MODEL.VIT.PYRAMID_CHANNELS = "test_vit", SIZE, 16
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.0
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ANCHOR_GENERATOR.SIZES = ["p3", "p4"], [[16], [32]]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = heads, ["p2"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = CLASSES, 32
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.DATASETS.TRAIN = ()
    cfg.merge_from_list(list(options))
    return cfg


def tiny_heads(heads="ImplantROIHeads", *options):
    torch.manual_seed(0)
    return build_roi_heads(tiny_config(heads, *options), {"p2": ShapeSpec(channels=CHANNELS, stride=4)}).train()


def features(num_images=1):
    return {"p2": torch.randn(num_images, CHANNELS, SIZE // 4, SIZE // 4)}


def targets(*labels):
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(torch.tensor([box for _, box in labels]).reshape(-1, 4))
    instances.gt_classes = torch.tensor([category for category, _ in labels], dtype=torch.long)
    return instances


def proposals(*boxes):
    instances = Instances((SIZE, SIZE), proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.objectness_logits = torch.zeros(len(boxes))
    return instances
