import math

import numpy as np
import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from implantdet.modeling.tiles import TiledDetector
from implantdet.modeling.tta import ImplantRCNNWithTTA, SymmetryTTA
from implantdet.modeling.uniting import Uniter

HEIGHT, WIDTH = 40, 60
BOX = [6, 10, 16, 34]  # of the bright rectangle, in pixels


def painted(channels=1):
    """An image with one bright rectangle, as the dataset mapper of a test set returns it."""
    image = torch.zeros(channels, HEIGHT, WIDTH)
    x1, y1, x2, y2 = BOX
    image[:, y1:y2, x1:x2] = 200
    return {"image": image, "height": HEIGHT, "width": WIDTH}


def bright_box(image):
    """Where an image (H, W) is bright, as (x1, y1, x2, y2)."""
    rows, columns = np.nonzero(image > 100)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_transforms_lead_from_the_version_back_to_the_image(channels):
    versions = SymmetryTTA(min_sizes=[HEIGHT, 2 * HEIGHT], max_size=1000, flip=True, rot90=True)(painted(channels))
    assert len(versions) == 16
    pictures = set()
    for version in versions:
        image = version["image"]
        assert image.shape[0] == channels
        box = bright_box(image[0].numpy())
        back = version["transforms"].inverse().apply_box(np.array([box], dtype=float))[0]
        np.testing.assert_allclose(back, BOX, atol=0.51)
        np.testing.assert_allclose(version["transforms"].apply_box(np.array([BOX], dtype=float))[0], box, atol=1.01)
        pictures.add((tuple(image.shape), *box))
    assert len(pictures) == 16  # all different


@pytest.mark.parametrize(
    "flip, rot90, number", [(False, False, 1), (True, False, 4), (False, True, 2), (True, True, 8)]
)
def test_number_of_versions(flip, rot90, number):
    assert len(SymmetryTTA(min_sizes=[HEIGHT], max_size=1000, flip=flip, rot90=rot90)(painted())) == number


@pytest.mark.parametrize("channels", [1, 3])
def test_versions_shrink_by_averaging(channels):
    """Threads of one pixel in four: whoever looks at single pixels between them sees none, and their mean is 50."""
    image = torch.zeros(channels, 64, 96)
    image[:, :, ::4] = 200
    record = {"image": image, "height": 64, "width": 96}
    (version,) = SymmetryTTA(min_sizes=[16], max_size=1000, flip=False, rot90=False)(record)
    assert version["image"].shape == (channels, 16, 24)
    assert version["image"].dtype == torch.float32
    inner = version["image"][:, :, 1:-1]  # the rim has no neighbours to average with
    torch.testing.assert_close(inner, torch.full_like(inner, 50.0), rtol=0, atol=0.01)


def test_versions_of_panoramics_are_larger(tiny_cfg):
    options = ("TEST.AUG.MIN_SIZES", "(40, 60)", "TEST.AUG.ROT90", "False", "TEST.AUG.FLIP", "False")
    largest = ("TEST.AUG.MAX_SIZE", "90")  # the width of the larger version
    cfg = tiny_cfg(*options, *largest, "INPUT.PANORAMIC_ZOOM", "1.5")
    for modality, heights in (("periapical", [40, 60]), ("panoramic", [60, 90])):
        versions = SymmetryTTA(cfg)(painted() | {"modality": modality})
        assert [version["image"].shape[1] for version in versions] == heights
        for version in versions:
            box = bright_box(version["image"][0].numpy())
            back = version["transforms"].inverse().apply_box(np.array([box], dtype=float))[0]
            np.testing.assert_allclose(back, BOX, atol=0.51)


def test_an_image_that_was_resized_before_leads_back_to_the_one_of_the_dataset():
    record = painted() | {"height": 2 * HEIGHT, "width": 2 * WIDTH}
    for version in SymmetryTTA(min_sizes=[HEIGHT, 10], max_size=1000, flip=True, rot90=True)(record):
        box = bright_box(version["image"][0].numpy())
        back = version["transforms"].inverse().apply_box(np.array([box], dtype=float))[0]
        np.testing.assert_allclose(back, 2 * np.array(BOX), atol=4.01)  # a pixel of the smallest version is 8 wide


class Oracle(GeneralizedRCNN):
    """Finds the bright rectangle in two categories, in whatever version; its mask covers what is brightest."""

    def __init__(self):
        nn.Module.__init__(self)
        self.roi_heads = nn.Module()

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        found = []
        for index, record in enumerate(batched_inputs):
            image = record["image"][0]
            if not (image > 100).any():
                boxes = torch.zeros(0, 4)
            else:
                boxes = torch.tensor([bright_box(image.numpy())] * 2).float()
            instances = detected_instances[index] if detected_instances else Instances(image.shape)
            if not detected_instances:
                instances.pred_boxes = Boxes(boxes)
                instances.scores = torch.tensor([0.9, 0.8])[: len(boxes)]
                instances.pred_classes = torch.tensor([1, 3])[: len(boxes)]
            else:
                x1, y1, x2, y2 = bright_box(image.numpy())
                crop = image[None, None, y1:y2, x1:x2]
                masks = nn.functional.interpolate(crop, (28, 28), mode="nearest") > 210
                instances.pred_masks = masks.float().expand(len(instances), -1, -1, -1)
            found.append(instances)
        return found


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(
        *("TEST.AUG.MIN_SIZES", (HEIGHT, 2 * HEIGHT), "TEST.AUG.FLIP", True, "TEST.AUG.ROT90", True),
        *("MODEL.MASK_ON", False),
    )


def changed(cfg, *opts):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(opts)
    return cfg


def test_two_categories_on_one_box_stay_two_detections(cfg):
    found = ImplantRCNNWithTTA(cfg, Oracle())([painted()])[0]["instances"]
    assert found.pred_classes.tolist() == [1, 3]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    np.testing.assert_allclose(found.pred_boxes.tensor.numpy(), [BOX, BOX], atol=0.51)
    assert found.image_size == (HEIGHT, WIDTH)


UNITED = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4)]  # widths of Soft-NMS, and IoU of the votes


@pytest.mark.parametrize(("sigma", "voting_iou"), UNITED)
def test_one_version_finds_what_the_detector_finds(tiny_cfg, sigma, voting_iou):
    """No score is lowered twice, by the heads and when versions are united, and nobody votes twice."""
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.PART_HEAD.SOFT_NMS_SIGMA", sigma, "MODEL.PART_HEAD.BOX_VOTING_IOU", voting_iou),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-6, "MODEL.MASK_ON", False),
        *("TEST.AUG.MIN_SIZES", (HEIGHT,), "TEST.AUG.FLIP", False),
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        alone = model([painted()])[0]["instances"]
        found = ImplantRCNNWithTTA(cfg, model)([painted()])[0]["instances"]
    assert len(alone) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert found.pred_classes.tolist() == alone.pred_classes.tolist()
    torch.testing.assert_close(found.scores, alone.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor)


@pytest.mark.parametrize(("sigma", "voting_iou"), UNITED)
@pytest.mark.parametrize("height", [HEIGHT, 2 * HEIGHT])
def test_a_large_version_is_looked_at_in_tiles_and_a_small_one_whole(tiny_cfg, height, sigma, voting_iou):
    """What the tiles show is united once, with that of the other versions: here there is one."""
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.PART_HEAD.SOFT_NMS_SIGMA", sigma, "MODEL.PART_HEAD.BOX_VOTING_IOU", voting_iou),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-6, "MODEL.MASK_ON", False),
        *("TEST.AUG.MIN_SIZES", (height,), "TEST.AUG.FLIP", False, "TEST.TILE_SIZE", 64, "TEST.TILE_OVERLAP", 32),
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    (version,) = SymmetryTTA(cfg)(painted())
    with torch.no_grad():
        found = ImplantRCNNWithTTA(cfg, model)([painted()])[0]["instances"]
        uniter, model.roi_heads.uniter = model.roi_heads.uniter, None
        if height == HEIGHT:
            (alone,) = model.inference([{"image": version["image"]}], do_postprocess=False)
        else:
            everything = Uniter(1.0, 0.0, 0.0, 0.0, -1)
            tiled = TiledDetector(model, size=64, overlap=32, uniter=everything)
            alone = tiled([{"image": version["image"]}])[0]["instances"]
    heads = cfg.MODEL.ROI_HEADS
    uniter = uniter or Uniter(heads.NMS_THRESH_TEST, 0, 0, heads.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)
    expected = detector_postprocess(uniter([alone]), HEIGHT, WIDTH)
    assert len(expected) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-4)


def test_versions_that_need_no_tiles_pass_through_the_model_together(tiny_cfg):
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "MODEL.MASK_ON", False, "TEST.TILE_SIZE", 64, "TEST.TILE_OVERLAP", 32),
        *("TEST.AUG.MIN_SIZES", (HEIGHT,), "TEST.AUG.FLIP", True, "TEST.AUG.ROT90", True),
    )
    model, together = build_model(cfg).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, given: together.append(len(given[0])))
    with torch.no_grad():
        ImplantRCNNWithTTA(cfg, model, batch_size=3)([painted()])
    assert together == [3, 3, 2]


def test_versions_are_united_by_soft_nms(cfg):
    """Each of eight versions finds the same two categories: copies lose score, step by step, and do not vanish."""
    cfg = changed(cfg, "MODEL.PART_HEAD.SOFT_NMS_SIGMA", 0.5, "TEST.AUG.MIN_SIZES", (HEIGHT,))
    found = ImplantRCNNWithTTA(cfg, Oracle())([painted()])[0]["instances"]
    of_first = found.scores[found.pred_classes == 1].tolist()
    assert of_first == pytest.approx([0.9, 0.9 * math.exp(-2)], abs=1e-4)  # the next has a score below 0.05
    assert set(found.pred_classes.tolist()) == {1, 3}


def test_voting_takes_the_mean_over_the_versions(cfg):
    """An image of half the size, of which the model sees nothing, halves the scores."""

    class FarSighted(Oracle):
        def inference(self, batched_inputs, *args, **kwargs):
            found = super().inference(batched_inputs, *args, **kwargs)
            return [each[: 0 if max(each.image_size) <= WIDTH else None] for each in found]

    options = ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "TEST.AUG.MIN_SIZES", (HEIGHT, 2 * HEIGHT))
    found = ImplantRCNNWithTTA(changed(cfg, *options), FarSighted())([painted()])[0]["instances"]
    assert found.pred_classes.tolist() == [1, 3]
    assert found.scores.tolist() == pytest.approx([0.45, 0.4])
    np.testing.assert_allclose(found.pred_boxes.tensor.numpy(), [BOX, BOX], atol=0.51)


def test_boxes_are_not_rounded_in_mixed_precision(cfg):
    """Scores come in bfloat16 under autocast; of coordinates, that would leave 8 bits."""

    class Rounding(Oracle):
        def inference(self, batched_inputs, *args, **kwargs):
            found = super().inference(batched_inputs, *args, **kwargs)
            for each in found:
                each.scores, each.pred_boxes.tensor = each.scores.bfloat16(), each.pred_boxes.tensor + 0.3
            return found

    options = ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "TEST.AUG.MIN_SIZES", (HEIGHT,), "TEST.AUG.FLIP", False)
    options += ("TEST.AUG.ROT90", False)
    with torch.autocast("cpu", torch.bfloat16):
        found = ImplantRCNNWithTTA(changed(cfg, *options), Rounding())([painted()])[0]["instances"]
    np.testing.assert_allclose(found.pred_boxes.tensor.numpy(), np.add([BOX, BOX], 0.3), atol=1e-4)


def test_after_an_error_the_model_is_as_it_was(tiny_cfg):
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        *("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "MODEL.MASK_ON", False, "TEST.AUG.MIN_SIZES", (HEIGHT,)),
    )
    model = build_model(cfg).eval()
    uniter = model.roi_heads.uniter
    assert uniter is not None
    handle = model.backbone.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        ImplantRCNNWithTTA(cfg, model)([painted()])
    handle.remove()
    assert model.roi_heads.uniter is uniter


def test_an_image_of_unknown_origin_is_its_own(cfg):
    alone = ImplantRCNNWithTTA(cfg, Oracle())([{"image": painted()["image"]}])[0]["instances"]
    assert alone.image_size == (HEIGHT, WIDTH)
    np.testing.assert_allclose(alone.pred_boxes.tensor.numpy(), [BOX, BOX], atol=0.51)


@pytest.mark.parametrize(("sigma", "voting_iou"), UNITED)
def test_nothing_found_is_no_error(cfg, sigma, voting_iou):
    cfg = changed(cfg, "MODEL.PART_HEAD.SOFT_NMS_SIGMA", sigma, "MODEL.PART_HEAD.BOX_VOTING_IOU", voting_iou)
    empty = painted() | {"image": torch.zeros(1, HEIGHT, WIDTH)}
    assert len(ImplantRCNNWithTTA(cfg, Oracle())([empty])[0]["instances"]) == 0


def test_masks_are_turned_back_before_they_are_averaged(cfg):
    cfg = changed(cfg, "MODEL.MASK_ON", True, "TEST.AUG.MIN_SIZES", (HEIGHT,))
    record = painted()
    record["image"][:, 10:16, 6:9] = 250  # the top left quarter of the rectangle, about
    found = ImplantRCNNWithTTA(cfg, Oracle())([record])[0]["instances"]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[10:16, 6:9] = True
    for mask in found.pred_masks:
        assert (mask & expected).sum() >= 0.7 * (mask | expected).sum()
