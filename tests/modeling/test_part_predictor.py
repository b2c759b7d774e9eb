import math
import pickle

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from implantdet.config import add_implantdet_config
from implantdet.modeling.part_predictor import PartPredictor

CHANNELS, CLASSES = 6, 4
TRANSFORM = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))


def predictor(cls=PartPredictor, **kwargs):
    kwargs = {"cls_agnostic_bbox_reg": True, "box2box_transform": TRANSFORM, "num_classes": CLASSES} | kwargs
    return cls(ShapeSpec(channels=CHANNELS), **kwargs)


def single_label_proposals(gt_classes):
    """Proposals that each have one category, or none (CLASSES), for both our predictor and Detectron2's."""
    gt_classes = torch.tensor(gt_classes, dtype=torch.long)
    proposals = Instances((50, 50))
    corners = torch.rand(len(gt_classes), 2) * 20
    proposals.proposal_boxes = Boxes(torch.cat([corners, corners + 20], dim=1))
    proposals.gt_boxes = Boxes(proposals.proposal_boxes.tensor + 2)
    proposals.gt_classes = gt_classes
    proposals.gt_labels = torch.nn.functional.one_hot(gt_classes, CLASSES + 1)[:, :-1].float()
    proposals.gt_label_weights = torch.ones_like(proposals.gt_labels)
    return proposals


def losses_of(box_predictor, features, proposals):
    with EventStorage():
        return box_predictor.losses(box_predictor(features), proposals)


@pytest.mark.parametrize("box_loss, beta", [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0), ("ciou", 0.0)])
@pytest.mark.parametrize(
    "loss, theirs",
    [
        ("cross_entropy", {"use_sigmoid_ce": False}),
        ("cross_entropy", {"use_sigmoid_ce": False, "cls_agnostic_bbox_reg": False}),
        ("binary_cross_entropy", {"use_sigmoid_ce": True}),
    ],
)
def test_with_single_labels_it_is_detectron2s_own(loss, theirs, box_loss, beta):
    torch.manual_seed(0)
    theirs = {"cls_agnostic_bbox_reg": True} | theirs
    common = {"cls_agnostic_bbox_reg": theirs.pop("cls_agnostic_bbox_reg"), "box_reg_loss_type": box_loss}
    common["smooth_l1_beta"] = beta
    reference = predictor(FastRCNNOutputLayers, **theirs, **common)
    ours = predictor(loss=loss, **common)
    assert ours.bbox_pred.out_features == (4 if common["cls_agnostic_bbox_reg"] else 4 * CLASSES)
    torch.nn.init.normal_(reference.cls_score.weight)
    ours.load_state_dict(reference.state_dict())
    features = torch.randn(9, CHANNELS)
    proposals = [single_label_proposals([0, 1, 2, 3, 4, 4]), single_label_proposals([4, 2, 0])]

    expected, found = losses_of(reference, features, proposals), losses_of(ours, features, proposals)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    expected, _ = reference.inference(reference(features), proposals)
    found, _ = ours.inference(ours(features), proposals)
    for ours_per_image, theirs_per_image in zip(found, expected, strict=True):
        assert len(ours_per_image) > 0
        torch.testing.assert_close(ours_per_image.scores, theirs_per_image.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            ours_per_image.pred_boxes.tensor, theirs_per_image.pred_boxes.tensor, rtol=0, atol=1e-6
        )
        assert torch.equal(ours_per_image.pred_classes, theirs_per_image.pred_classes)


def test_two_labels_and_one_that_is_not_assessable_by_hand():
    # Logits are the biases: probabilities 1/2, 3/4, 1/4 and 3/4. Yes to the first two, no to the third, no label for
    # the last: −ln 1/2 − 2 · ln 3/4, over one proposal; the second category weighs 3.
    box_predictor = predictor(loss="binary_cross_entropy", class_weighting="given", given_class_weights=[1, 3, 1, 1])
    torch.nn.init.zeros_(box_predictor.cls_score.weight)
    box_predictor.cls_score.bias.data = torch.tensor([0.0, math.log(3), -math.log(3), math.log(3), 0.0])
    proposals = single_label_proposals([0])
    proposals.gt_labels = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    proposals.gt_label_weights = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss = losses_of(box_predictor, torch.randn(1, CHANNELS), [proposals])["loss_cls"]
    assert loss.item() == pytest.approx(math.log(2) - 4 * math.log(0.75))


def test_found_labels_are_logged_by_hand():
    # Probabilities above 1/2 for the first and the last category. Of two proposals, one has the first two, and nobody
    # knows of the last; the other has nothing. Found: 1 of 2 labels; right: 1 of 3 that are found.
    box_predictor = predictor(loss="binary_cross_entropy")
    torch.nn.init.zeros_(box_predictor.cls_score.weight)
    box_predictor.cls_score.bias.data = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0])
    proposals = single_label_proposals([0, CLASSES])
    proposals.gt_labels = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0] * CLASSES])
    proposals.gt_label_weights = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0] * CLASSES])
    with EventStorage() as storage:
        box_predictor.losses(box_predictor(torch.randn(2, CHANNELS)), [proposals])
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged == {"fast_rcnn/label_recall": pytest.approx(1 / 2), "fast_rcnn/label_precision": pytest.approx(1 / 3)}


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9), (0.0, -1.0)])
def test_focal_is_torchvisions_over_the_proposals_that_are_something(gamma, alpha):
    torch.manual_seed(0)
    box_predictor = predictor(loss="focal", focal_gamma=gamma, focal_alpha=alpha)
    torch.nn.init.normal_(box_predictor.cls_score.weight)
    features, proposals = torch.randn(5, CHANNELS), single_label_proposals([0, 1, CLASSES, 3, CLASSES])
    proposals.gt_labels[0, 2] = 1  # two categories on one box
    loss = losses_of(box_predictor, features, [proposals])["loss_cls"]
    logits = box_predictor(features)[0][:, :-1]
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, proposals.gt_labels, alpha, gamma, "sum") / 3)
    if gamma == 0 and alpha < 0:  # without focus and balance
        expected = binary_cross_entropy_with_logits(logits, proposals.gt_labels, reduction="sum") / 3
        torch.testing.assert_close(loss, expected)


def test_focal_counts_proposals_that_are_something_by_hand():
    # Probabilities 3/4 everywhere, no focus, no balance. One of two proposals is something, of one category:
    # −ln 3/4 − 7 · ln 1/4, over that one.
    box_predictor = predictor(loss="focal", focal_gamma=0.0, focal_alpha=-1.0)
    torch.nn.init.zeros_(box_predictor.cls_score.weight)
    torch.nn.init.constant_(box_predictor.cls_score.bias, math.log(3))
    proposals = single_label_proposals([0, CLASSES])
    proposals.gt_labels, proposals.gt_label_weights = torch.zeros(2, CLASSES), torch.ones(2, CLASSES)
    proposals.gt_labels[0, 0] = 1
    loss = losses_of(box_predictor, torch.randn(2, CHANNELS), [proposals])["loss_cls"]
    assert loss.item() == pytest.approx(-math.log(0.75) - (2 * CLASSES - 1) * math.log(0.25))


def test_focal_with_class_weights_by_hand():
    # Probability 3/4 everywhere, γ = 2, α = 1/4. One proposal with the first category, which weighs 3:
    # 3 · 1/4 · (1/4)² · −ln 3/4, and three times 3/4 · (3/4)² · −ln 1/4.
    given = {"class_weighting": "given", "given_class_weights": [3, 5, 5, 5]}
    box_predictor = predictor(loss="focal", focal_gamma=2.0, focal_alpha=0.25, **given)
    torch.nn.init.zeros_(box_predictor.cls_score.weight)
    torch.nn.init.constant_(box_predictor.cls_score.bias, math.log(3))
    loss = losses_of(box_predictor, torch.randn(1, CHANNELS), [single_label_proposals([0])])["loss_cls"]
    assert loss.item() == pytest.approx(-3 / 4 / 16 * math.log(0.75) - 3 * 27 / 64 * math.log(0.25))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_gradients_are_finite_where_the_model_is_sure(gamma):
    box_predictor = predictor(loss="focal", focal_gamma=gamma)
    torch.nn.init.constant_(box_predictor.cls_score.bias, 40.0)
    losses_of(box_predictor, torch.randn(2, CHANNELS), [single_label_proposals([0, CLASSES])])["loss_cls"].backward()
    assert torch.isfinite(box_predictor.cls_score.bias.grad).all()


def test_a_predictor_can_be_pickled():
    copied = pickle.loads(pickle.dumps(predictor(class_weighting="given", given_class_weights=[1, 2, 3, 4])))
    assert copied.get_class_weights().tolist() == [1, 2, 3, 4]


def test_several_categories_on_one_box_come_out_as_several_detections():
    box_predictor = predictor(test_score_thresh=0.5)
    torch.nn.init.zeros_(box_predictor.cls_score.weight)
    torch.nn.init.zeros_(box_predictor.bbox_pred.weight)
    box_predictor.cls_score.bias.data = torch.tensor([3.0, -3.0, 2.0, -3.0, 0.0])
    proposals = Instances((50, 50), proposal_boxes=Boxes(torch.tensor([[10.0, 10, 30, 30], [11.0, 10, 31, 30]])))
    (found,), _ = box_predictor.inference(box_predictor(torch.zeros(2, CHANNELS)), [proposals])
    # Of the two proposals, which overlap, each category keeps one.
    assert found.pred_classes.tolist() == [0, 2]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())
    assert torch.equal(found.pred_boxes.tensor[0], found.pred_boxes.tensor[1])


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "focal"])
@pytest.mark.parametrize("gt_classes", [[], [CLASSES] * 3], ids=["no proposals", "only negatives"])
def test_batches_without_positives_have_finite_losses_with_gradients(loss, gt_classes):
    box_predictor = predictor(loss=loss)
    proposals = [single_label_proposals(gt_classes)]
    losses = losses_of(box_predictor, torch.randn(len(gt_classes), CHANNELS), proposals)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_box_reg"] == 0
    assert (losses["loss_cls"] == 0) == (not gt_classes)
    for parameter in box_predictor.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_an_untrained_predictor_finds_little():
    box_predictor = predictor(loss="focal")
    probability = box_predictor(torch.zeros(1, CHANNELS))[0][:, :CLASSES].sigmoid()
    torch.testing.assert_close(probability, torch.tensor([[0.01] * CLASSES]))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"loss": "hinge"},
            "LOSS: found 'hinge', expected one of cross_entropy, binary_cross_entropy, focal",
        ),
        (
            {"class_weighting": "some"},
            "CLASS_WEIGHTING: found 'some', expected one of none, inverse_frequency",
        ),
        ({"cls_agnostic_bbox_reg": False}, "CLS_AGNOSTIC_BBOX_REG True"),
        ({"focal_gamma": -1.0}, r"FOCAL_GAMMA -1\.0, expected 0 or a number >= 1"),
        ({"focal_gamma": 0.5}, r"FOCAL_GAMMA 0\.5, expected 0 or a number >= 1"),
        ({"focal_alpha": 1.5}, r"FOCAL_ALPHA 1\.5, expected a number <= 1"),
        ({"box_reg_loss_type": "iou"}, "BBOX_REG_LOSS_TYPE: found 'iou', expected one of smooth_l1, giou, diou, ciou"),
        ({"effective_number_beta": 1.0}, r"EFFECTIVE_NUMBER_BETA: found 1\.0, expected a number in \[0, 1\)"),
        ({"given_class_weights": (9.0, 9.0, 9.0)}, "CLASS_WEIGHTING 'none' does not read them"),
        ({"objectness_weight": 1.0}, r"OBJECTNESS_WEIGHT: found 1\.0, expected a number in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        predictor(**settings)


@pytest.mark.parametrize("key", ["USE_SIGMOID_CE", "USE_FED_LOSS"])
def test_detectron2s_keys_for_the_same_thing_are_refused(key):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    assert PartPredictor(cfg, ShapeSpec(channels=CHANNELS)).multi_label
    cfg.MODEL.ROI_BOX_HEAD[key] = True
    with pytest.raises(ValueError, match=f"{key} False: the loss is chosen by"):
        PartPredictor(cfg, ShapeSpec(channels=CHANNELS))


def test_the_focal_loss_of_a_config_by_hand():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = CLASSES, True
    cfg.MODEL.PART_HEAD.LOSS, cfg.MODEL.PART_HEAD.FOCAL_GAMMA, cfg.MODEL.PART_HEAD.FOCAL_ALPHA = "focal", 3.0, 0.75
    elementwise = PartPredictor(cfg, ShapeSpec(channels=CHANNELS)).elementwise
    # A logit of 0 is a probability of 1/2, right or wrong: alpha · (1/2)^gamma · ln 2.
    found = elementwise(torch.zeros(2), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]) / 8 * math.log(2))
    cfg.MODEL.PART_HEAD.FOCAL_ALPHA = -0.5  # no balance
    elementwise = PartPredictor(cfg, ShapeSpec(channels=CHANNELS)).elementwise
    torch.testing.assert_close(elementwise(torch.zeros(1), torch.ones(1)), torch.tensor([math.log(2) / 8]))


def test_losses_are_weighted():
    features, proposals = torch.randn(3, CHANNELS), single_label_proposals([0, 1, 4])
    plain, heavy = predictor(), predictor(loss_weight={"loss_box_reg": 10.0, "loss_cls": 0.5})
    heavy.load_state_dict(plain.state_dict())
    one, other = (losses_of(each, features, [proposals]) for each in (plain, heavy))
    torch.testing.assert_close(other["loss_box_reg"], 10 * one["loss_box_reg"])
    torch.testing.assert_close(other["loss_cls"], 0.5 * one["loss_cls"])


def config(**part_head):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = 2, True
    for key, value in part_head.items():
        cfg.MODEL.PART_HEAD[key] = value
    return cfg


def test_class_weights_of_the_config_reach_the_loss():
    """A softmax by hand: proposals of either category and of none, whose weight is 1."""
    cfg = config(LOSS="cross_entropy", CLASS_WEIGHTING="given", CLASS_WEIGHTS=[1.0, 3.0])
    weighted = PartPredictor(cfg, ShapeSpec(channels=CHANNELS))
    logits, deltas = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).repeat(3, 1), torch.zeros(3, 4)
    proposals = single_label_proposals([0, 1, 2])
    with EventStorage():
        losses = weighted.losses((logits, deltas), [proposals])
    assert losses["loss_cls"].item() == pytest.approx((math.log(2) + 3 * math.log(4) + math.log(4)) / 3)
    assert losses["loss_box_reg"] > 0


def test_the_beta_of_the_config_weighs_the_training_set():
    """Effective numbers of 1 and 2 annotations are 1 and 1.5; scaled to a mean of 1 over the annotations."""
    DatasetCatalog.register("one_and_two", lambda: [{"annotations": [{"category_id": k} for k in (0, 1, 1)]}])
    cfg = config(CLASS_WEIGHTING="effective_number", EFFECTIVE_NUMBER_BETA=0.5)
    cfg.DATASETS.TRAIN = ("one_and_two",)
    try:
        weights = PartPredictor(cfg, ShapeSpec(channels=CHANNELS)).get_class_weights()
    finally:
        DatasetCatalog.remove("one_and_two")
    torch.testing.assert_close(weights, torch.tensor([9 / 7, 6 / 7]))
