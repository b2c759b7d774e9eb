import copy
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from tiny_heads import (
    CHANNELS,
    CLASSES,
    HEADS,
    OTHER,
    SIZE,
    TWICE,
    features,
    proposals,
    targets,
    tiny_config,
    tiny_heads,
)

from implantdet.modeling import implant_roi_heads

AS_CONFIGURED = ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "MODEL.PART_HEAD.OBJECTNESS_WEIGHT", 0.3)  # in Base-parts.yaml


@pytest.mark.parametrize("heads", HEADS)
def test_proposals_carry_every_category_of_their_box(heads):
    expected = {tuple(TWICE): [1, 1, 0], tuple(OTHER): [0, 0, 1], (0.0, 0.0, 8.0, 8.0): [0, 0, 0]}
    for append_gt, number in ((True, 3 + 2), (False, 3)):  # the ground truth is added, each box once
        module = tiny_heads(heads, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", append_gt)
        annotations = targets((0, TWICE), (1, TWICE), (2, OTHER))
        with EventStorage():
            (sampled,) = module.label_and_sample_proposals([proposals(*map(list, expected))], [annotations])
        assert len(sampled) == number
        for box, labels in zip(sampled.proposal_boxes.tensor.tolist(), sampled.gt_labels.tolist(), strict=True):
            assert labels == expected[tuple(box)]


def test_distinct_boxes_keep_their_order():
    """As Detectron2 would append them: which proposals are sampled depends on it."""
    boxes = torch.tensor([OTHER, TWICE, OTHER, [0.0, 0.0, 8.0, 8.0], TWICE])
    assert torch.equal(implant_roi_heads._distinct(Boxes(boxes)).tensor, boxes[[0, 1, 3]])
    assert len(implant_roi_heads._distinct(Boxes(boxes[:0]))) == 0


def test_the_stock_head_never_learns_the_second_category_of_a_box():
    near = [[12.0 + dx, 10.0 + dy, 28.0, 50.0] for dx in range(4) for dy in range(4)]
    module = tiny_heads("StandardROIHeads", "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0)
    with EventStorage():
        (sampled,) = module.label_and_sample_proposals(
            [proposals(*near)], [targets((0, TWICE), (1, TWICE), (2, OTHER))]
        )
    assert len(sampled) == 16 + 3
    assert set(sampled.gt_classes.tolist()) == {0, 2}  # and its softmax could not give two categories 1/2 each


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    "images",
    [
        [(proposals(TWICE, OTHER), targets())],
        [(proposals(), targets())],
        [(proposals(), targets((1, OTHER)))],
        [(proposals([0.0, 0.0, 8.0, 8.0]), targets()), (proposals([4.0, 4.0, 9.0, 9.0]), targets())],
    ],
    ids=["no annotations", "nothing at all", "no proposals", "only negatives"],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "focal"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "ciou"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_odd_batches_have_finite_losses_with_gradients(heads, images, loss, box_loss, precision):
    module = tiny_heads(heads, "MODEL.PART_HEAD.LOSS", loss, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", box_loss)
    given, annotations = zip(*copy.deepcopy(images), strict=True)
    with EventStorage(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        _, losses = module(None, features(len(images)), list(given), list(annotations))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("labels", [[], [(0, TWICE), (1, TWICE)]], ids=["no annotations", "two on one box"])
def test_masks_train_beside_images_without_annotations(heads, labels):
    module = tiny_heads(heads, "MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    given, annotations = [proposals(TWICE, OTHER), proposals(OTHER)], [targets(*labels), targets()]
    if labels:
        annotations[0].gt_masks = BitMasks(torch.ones(len(labels), SIZE, SIZE, dtype=torch.bool))
    with EventStorage():
        _, losses = module(None, features(2), given, annotations)
    assert (losses["loss_mask"] > 0) == bool(labels)
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_each_stage_of_the_cascade_labels_by_its_own_threshold():
    module = tiny_heads("CascadeImplantROIHeads")
    near = [12.0, 10.0, 28.0, 36.0]  # IoU with TWICE is 26/40 = 0.65
    annotations = [targets((0, TWICE), (1, TWICE))]
    with EventStorage():
        found = [module._match_and_label_boxes([proposals(near)], stage, annotations) for stage in range(3)]
    assert [stage[0].gt_labels.tolist() for stage in found] == [[[1, 1, 0]], [[1, 1, 0]], [[0, 0, 0]]]


@pytest.mark.parametrize("heads", HEADS)
def test_soft_nms_keeps_what_nms_drops(heads):
    given = [proposals(TWICE, [13.0, 10.0, 28.0, 50.0], OTHER)]
    found = {}
    for sigma in (0.0, 0.5):
        options = ("MODEL.PART_HEAD.SOFT_NMS_SIGMA", sigma, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4)
        module = tiny_heads(heads, *options).eval()
        with torch.no_grad():
            (found[sigma],), _ = module(
                None, {"p2": torch.zeros(1, CHANNELS, SIZE // 4, SIZE // 4)}, copy.deepcopy(given)
            )
    assert len(found[0.0]) == 2 * CLASSES
    assert len(found[0.5]) == 3 * CLASSES
    assert found[0.5].scores.min() < 0.5 * found[0.0].scores.min()  # the overlapping one lost score


@pytest.mark.parametrize("heads", HEADS)
def test_boxes_are_voted_on(heads):
    """Of two proposals on one third, one box is left, between theirs."""
    given = [proposals(TWICE, [16.0, 10.0, 28.0, 50.0], OTHER)]
    options = ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4)
    module = tiny_heads(heads, *options).eval()
    with torch.no_grad():
        (found,), _ = module(None, {"p2": torch.zeros(1, CHANNELS, SIZE // 4, SIZE // 4)}, copy.deepcopy(given))
    assert len(found) == 2 * CLASSES
    left = found.pred_boxes.tensor[:, 0]
    assert ((left > 12.5) & (left < 15.5) | (left > 39)).all()  # nothing has been regressed but by an untrained head
    assert ((left > 12.5) & (left < 15.5)).sum() == CLASSES


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("key", ["BOX_VOTING_IOU", "SOFT_NMS_SIGMA"])
def test_what_many_proposals_agree_on_pushes_nothing_out(heads, key):
    given = [proposals(*[TWICE] * 900, OTHER)]
    given[0].objectness_logits[-1] = -2.0
    options = ("MODEL.PART_HEAD.OBJECTNESS_WEIGHT", 0.9, f"MODEL.PART_HEAD.{key}", 0.4)
    module = tiny_heads(heads, *options, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4).eval()
    with torch.no_grad():
        (found,), _ = module(None, {"p2": torch.zeros(1, CHANNELS, SIZE // 4, SIZE // 4)}, copy.deepcopy(given))
    assert (found.pred_boxes.tensor[:, 0] > 30).sum() == CLASSES


@pytest.mark.parametrize("heads", HEADS)
def test_objectness_lowers_scores(heads):
    """In a cascade its first stage alone knows it."""
    given = proposals(TWICE, OTHER)
    given.objectness_logits = torch.tensor([0.0, -3.0])
    scores = []
    for share in (0.0, 0.5):
        options = ("MODEL.PART_HEAD.OBJECTNESS_WEIGHT", share, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        module = tiny_heads(heads, *options).eval()
        with torch.no_grad():
            (found,), _ = module(None, {"p2": torch.zeros(1, CHANNELS, SIZE // 4, SIZE // 4)}, [copy.deepcopy(given)])
        order = found.pred_boxes.tensor[:, 0].argsort(stable=True)
        scores.append(found.scores[order].reshape(2, CLASSES))
    plain, fused = scores
    expected = (plain * given.objectness_logits.sigmoid()[:, None]) ** 0.5
    if heads == "CascadeImplantROIHeads":
        expected = (expected + 2 * plain) / 3  # untrained stages say the same
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-6)


def test_masks_of_coincident_boxes_are_class_agnostic():
    options = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    options += ("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 4)
    with pytest.raises(ValueError, match=r"set MODEL\.ROI_MASK_HEAD\.CLS_AGNOSTIC_MASK True"):
        tiny_heads("ImplantROIHeads", *options)
    module = tiny_heads("ImplantROIHeads", *options, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    annotations = targets((0, TWICE), (1, TWICE))
    annotations.gt_masks = BitMasks(torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    with EventStorage():
        _, losses = module(None, features(), [proposals(TWICE)], [annotations])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}


@pytest.mark.parametrize("heads", HEADS)
def test_masks_come_with_what_voting_and_objectness_leave(heads):
    options = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    module = tiny_heads(heads, *options, *AS_CONFIGURED, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4).eval()
    with torch.no_grad():
        (found,), _ = module(None, features(), [proposals(TWICE, [13.0, 10.0, 28.0, 50.0], OTHER)])
    assert len(found) == 2 * CLASSES and found.pred_masks.shape == (2 * CLASSES, 1, 28, 28)
    # A mask is that of its box, whatever the category.
    boxes, which = found.pred_boxes.tensor.unique(dim=0, return_inverse=True)
    for number in range(len(boxes)):
        same = found.pred_masks[which == number]
        torch.testing.assert_close(same, same[:1].expand_as(same))


def overfitted(heads, *options):
    """A model that has seen one image often enough, and what it finds there."""
    torch.manual_seed(0)
    model = build_model(tiny_config(heads, *options)).train()
    image = torch.zeros(1, SIZE, SIZE)
    image[:, 10:50, 12:28], image[:, 20:40, 40:56] = 200, 120
    batch = [{"image": image, "instances": targets((0, TWICE), (1, TWICE), (2, OTHER))}]
    steps = 80
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    with EventStorage():
        for _ in range(steps):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return model.eval()([{"image": image}])[0]["instances"]


def found_categories(instances, box, min_iou=0.9):
    """Categories that are found on a box with a score of more than 1/2."""
    good = (pairwise_iou(instances.pred_boxes, Boxes(torch.tensor([box])))[:, 0] >= min_iou) & (instances.scores > 0.5)
    return set(instances.pred_classes[good].tolist())


# So short a training leaves proposals that are regressed badly, and those vote, too.
@pytest.mark.parametrize(("options", "min_iou"), [((), 0.9), (AS_CONFIGURED, 0.75)], ids=["plain", "as configured"])
@pytest.mark.parametrize("heads", HEADS)
def test_two_categories_on_one_box_are_both_found(heads, options, min_iou):
    assert found_categories(overfitted(heads, *options), TWICE, min_iou) == {0, 1}


def test_the_stock_head_misses_one():
    assert found_categories(overfitted("StandardROIHeads"), TWICE) == {0}


@pytest.fixture
def my_dataset():
    names = ["middle.body.straight", "middle.body.tapered", "middle.thread.v_shaped"]
    MetadataCatalog.get("my_dataset").set(thing_classes=names, supercategories=["middle"] * 3)
    boxes = [{"category_id": category} for category in (0, 0, 0, 1)]
    DatasetCatalog.register("my_dataset", lambda: [{"annotations": boxes}])
    yield "my_dataset"
    DatasetCatalog.remove("my_dataset")
    MetadataCatalog.remove("my_dataset")


def test_axes_and_weights_come_from_the_training_set(my_dataset):
    options = ("DATASETS.TRAIN", (my_dataset,), "MODEL.PART_HEAD.CLASS_WEIGHTING", "inverse_frequency")
    module = tiny_heads("ImplantROIHeads", *options)
    with EventStorage():
        (sampled,) = module.label_and_sample_proposals([proposals(TWICE)], [targets((1, TWICE))])
    assert sampled.gt_label_weights.tolist() == [[1, 1, 0]] * 2  # nobody assessed the thread
    torch.testing.assert_close(module.box_predictor.get_class_weights(), torch.tensor([2 / 3, 2.0, 1.0]))


@pytest.mark.parametrize("heads", HEADS)
def test_implants_are_told_apart_by_their_numbers(my_dataset, heads):
    """On one box, body and thread: of one implant all axes are answered, of two each lacks one."""
    near = [12.0, 10.0, 28.0, 28.0]  # IoU 0.45: it matches nothing
    for numbers, expected in (([1, 1], [1, 1, 1]), ([1, 2], [0, 0, 0])):
        annotations = targets((0, TWICE), (2, TWICE))
        annotations.gt_implants = torch.tensor(numbers)
        with EventStorage():
            (sampled,) = tiny_heads(heads, "DATASETS.TRAIN", (my_dataset,)).label_and_sample_proposals(
                [proposals(near)], [annotations]
            )
        here = (sampled.proposal_boxes.tensor == torch.tensor(near)).all(dim=1)
        assert sampled.gt_label_weights[here].tolist() == [expected]


def test_the_training_set_is_counted_once(my_dataset, caplog):
    options = ("DATASETS.TRAIN", (my_dataset,), "MODEL.PART_HEAD.CLASS_WEIGHTING", "inverse_frequency")
    module = tiny_heads("CascadeImplantROIHeads", *options)
    averaged = copy.deepcopy(module)  # as the average of the weights is made
    with EventStorage(), caplog.at_level("INFO", logger="implantdet"):
        for heads in (module, averaged):
            heads(None, features(), [proposals(TWICE)], [targets((0, TWICE))])
    assert len([record for record in caplog.records if "annotations, weight" in record.message]) == CLASSES


def test_a_model_that_only_predicts_needs_no_training_set():
    options = ("DATASETS.TRAIN", ("not_registered",), "MODEL.PART_HEAD.CLASS_WEIGHTING", "effective_number")
    module = tiny_heads("ImplantROIHeads", *options).eval()
    (instances,), _ = module(None, features(), [proposals(TWICE)])
    assert instances.has("scores")


def resnet_config():
    """Detectron2 alone: a small ResNet with an FPN, and nothing of ours."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON = "cpu", "", True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = (
        "FastRCNNConvFCHead",
        1,
        16,
    )
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = (SIZE,), False
    return cfg


@pytest.mark.parametrize("project", [resnet_config, partial(tiny_config, "StandardROIHeads")])
def test_the_example_of_the_docstring_trains(project, my_dataset, tmp_path, monkeypatch):
    example = textwrap.dedent(implant_roi_heads.__doc__.split("::\n\n")[1])
    assert len([line for line in example.splitlines() if line]) <= 13  # ten lines and what they import
    cfg = project()
    (tmp_path / "my_project.yaml").write_text(cfg.dump(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Nothing that this file has imported helps it there.
    subprocess.run([sys.executable, "-c", example], check=True)
    names = {}
    exec(example, names)
    model = names["model"].train()
    num_channels = len(cfg.MODEL.PIXEL_MEAN)
    instances = targets((0, TWICE), (2, TWICE))
    instances.gt_masks = BitMasks(torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    with EventStorage():
        losses = model([{"image": torch.zeros(num_channels, SIZE, SIZE), "instances": instances}])
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert type(model.roi_heads).__name__ == "ImplantROIHeads"


def test_what_fails_in_a_dataset_function_is_told():
    DatasetCatalog.register("broken", lambda: object().no_such_thing)
    try:
        heads = tiny_heads("ImplantROIHeads", "DATASETS.TRAIN", "('broken',)")
        with pytest.raises(AttributeError, match="no_such_thing"):
            heads.category_table()
    finally:
        DatasetCatalog.remove("broken")
