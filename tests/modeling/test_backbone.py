import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import vit as d2_vit
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

import implantdet  # noqa: F401
from implantdet.config import add_implantdet_config
from implantdet.modeling.backbone import build_pyramid
from implantdet.modeling.vit import ViT

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


def small_config(num_channels=1, **vit_options):
    """Plain Detectron2, with our backbone: a Faster R-CNN of a few thousand parameters."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [110.0] * num_channels, [60.0] * num_channels
    cfg.MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"
    cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE, cfg.MODEL.VIT.PYRAMID_CHANNELS = "test_vit", 64, 16
    for key, value in vit_options.items():
        cfg.MODEL.VIT[key] = value
    cfg.MODEL.RPN.IN_FEATURES = list(STRIDES)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    return cfg


@torch.no_grad()
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (320, 512)])
def test_shapes_and_strides(num_channels, size):
    cfg = small_config(num_channels)
    backbone = build_backbone(cfg)
    declared = backbone.output_shape()
    assert {name: shape.stride for name, shape in declared.items()} == STRIDES
    assert all(shape.channels == 16 for shape in declared.values())
    features = backbone(torch.randn(2, num_channels, *size))
    assert list(features) == list(STRIDES)
    for name, stride in STRIDES.items():
        # Detectron2's p6 is every other row and column of p5, the first included.
        assert features[name].shape == (2, 16, *(-(-side // stride) for side in size))


def test_images_of_any_size_are_padded_to_a_multiple_of_32():
    backbone = build_backbone(small_config())
    images = [torch.ones(1, 300, 500), torch.ones(1, 200, 340)]
    batch = ImageList.from_tensors(images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints)
    assert batch.tensor.shape == (2, 1, 320, 512)
    assert backbone(batch.tensor)["p5"].shape == (2, 16, 10, 16)


@torch.no_grad()
def test_a_detector_takes_an_image_of_300_by_500():
    torch.manual_seed(0)
    model = build_model(small_config(WINDOW_SIZE=7)).eval()
    (result,) = model([{"image": torch.rand(1, 300, 500) * 255, "height": 600, "width": 1000}])
    assert result["instances"].image_size == (600, 1000)


def test_a_detector_trains_every_parameter_of_the_backbone():
    torch.manual_seed(0)
    model = build_model(small_config(3)).train()
    instances = Instances((64, 96), gt_boxes=Boxes([[8.0, 8.0, 40.0, 50.0]]), gt_classes=torch.tensor([3]))
    with EventStorage():
        losses = model([{"image": torch.rand(3, 64, 96) * 255, "instances": instances}])
    sum(losses.values()).backward()
    without_gradient = [name for name, parameter in model.backbone.named_parameters() if parameter.grad is None]
    assert not without_gradient
    assert model.backbone.net.patch_embed.proj.weight.grad.any()


def test_the_pyramid_computes_what_detectron2s_does():
    """Fused norms and channels-last weights change the speed, not the features or the keys."""
    torch.manual_seed(0)
    vit = ViT(name="test_vit", img_size=64, in_chans=1)
    ours = build_pyramid(vit, 16)
    theirs = d2_vit.SimpleFeaturePyramid(
        net=vit,
        in_feature="last_feat",
        out_channels=16,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
    )
    for parameter in ours.parameters():  # norms that do something
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 1, 64, 96)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_mixed_precision_does_not_round_the_boxes_that_are_pooled():
    """In bfloat16, the type of the maps otherwise, 203.4 is 203."""
    backbone = build_backbone(small_config())
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(torch.randn(1, 1, 256, 256))
    assert {level.dtype for level in features.values()} == {torch.float32}
    # A map of the column's number, and a box of one pixel round 203.4.
    columns = torch.arange(64.0).expand(1, 1, 64, 64) * 4 + 2
    pooler = ROIPooler(1, [1 / 4], 0, "ROIAlignV2")
    found = pooler([columns.to(features["p2"].dtype)], [Boxes(torch.tensor([[202.9, 100.0, 203.9, 101.0]]))])
    assert found.item() == pytest.approx(203.4, abs=1e-3)


def test_keys_are_those_of_timm_under_backbone_net():
    model = build_model(small_config())
    keys = [key for key in model.state_dict() if key.startswith("backbone.net.")]
    assert "backbone.net.cls_token" in keys
    assert "backbone.net.pos_embed" in keys
    assert "backbone.net.patch_embed.proj.weight" in keys
    assert "backbone.net.blocks.5.attn.qkv.weight" in keys
    assert "backbone.net.norm.weight" in keys
    assert not any("head" in key for key in keys)


def test_detectron2s_layer_decay_finds_the_blocks():
    model = build_model(small_config())
    rates = {name: get_vit_lr_decay_rate(name, 0.5, 6) for name, _ in model.named_parameters()}
    assert rates["backbone.net.pos_embed"] == rates["backbone.net.patch_embed.proj.weight"] == 0.5**7
    assert rates["backbone.net.blocks.0.norm1.weight"] == 0.5**6
    assert rates["backbone.net.blocks.5.mlp.fc2.bias"] == 0.5
    assert rates["backbone.net.norm.weight"] == rates["backbone.simfp_2.0.weight"] == 1.0


def test_channels_come_from_the_input_shape():
    backbone = build_backbone(small_config(), input_shape=ShapeSpec(channels=3))
    assert backbone.net.patch_embed.proj.in_channels == 3
