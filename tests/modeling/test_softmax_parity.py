"""With a softmax, the heads are Detectron2's own: the same sampling, losses, detections and masks."""

import copy

import pytest
import torch
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from tiny_heads import HEADS, OTHER, SIZE, TWICE, features, proposals, targets, tiny_heads


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "ciou"])
@pytest.mark.parametrize(
    ("stock", "heads", "agnostic"),
    [
        ("StandardROIHeads", "ImplantROIHeads", True),
        ("StandardROIHeads", "ImplantROIHeads", False),
        ("CascadeROIHeads", "CascadeImplantROIHeads", True),
    ],
)
def test_with_a_softmax_they_are_detectron2s_heads(stock, heads, agnostic, box_loss):
    """Sampling, every stage, losses and detections, with one category on every box."""
    options = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", box_loss)
    options += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    reference = tiny_heads(stock, *options)
    ours = tiny_heads(heads, *options, "MODEL.PART_HEAD.LOSS", "cross_entropy")
    ours.load_state_dict(reference.state_dict())
    pyramid = features(2)
    given = [proposals(TWICE, OTHER, [0.0, 0.0, 8.0, 8.0], [13.0, 9.0, 30.0, 48.0]), proposals(OTHER)]
    annotations = [targets((0, TWICE), (2, OTHER)), targets((1, OTHER))]
    losses, found = [], []
    for module in (reference, ours):
        torch.manual_seed(1)  # of the sampling
        with EventStorage():
            losses.append(module(None, pyramid, copy.deepcopy(given), annotations)[1])
        with torch.no_grad():
            found.append(module.eval()(None, pyramid, copy.deepcopy(given))[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert len(mine) > 0
        torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=0, atol=1e-6)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize(
    ("stock", "heads"), [("StandardROIHeads", "ImplantROIHeads"), ("CascadeROIHeads", "CascadeImplantROIHeads")]
)
def test_with_a_softmax_masks_are_detectron2s(stock, heads, agnostic):
    """Also where each class has a mask of its own, and beside an image without annotations."""
    options = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    options += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    reference = tiny_heads(stock, *options)
    ours = tiny_heads(heads, *options, "MODEL.PART_HEAD.LOSS", "cross_entropy")
    ours.load_state_dict(reference.state_dict())
    pyramid, annotations = features(2), [targets((0, TWICE), (2, OTHER)), targets()]
    annotations[0].gt_masks = BitMasks(torch.rand(2, SIZE, SIZE) > 0.5)
    losses, found = [], []
    for module in (reference, ours):
        torch.manual_seed(1)
        with EventStorage():
            given = [proposals(TWICE, OTHER, [0.0, 0.0, 8.0, 8.0]), proposals(OTHER)]
            losses.append(module(None, pyramid, given, copy.deepcopy(annotations))[1])
        with torch.no_grad():
            found.append(module.eval()(None, pyramid, [proposals(TWICE, OTHER)] * 2)[0])
    assert losses[0]["loss_mask"] > 0
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert len(mine) > 0 and mine.pred_masks.shape == (len(mine), 1, 28, 28)
        torch.testing.assert_close(mine.pred_masks, theirs.pred_masks, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", HEADS)
def test_a_softmax_asks_nothing_of_the_training_set_that_detectron2_does_not(heads):
    """Neither its classes nor its name are looked up."""
    module = tiny_heads(heads, "MODEL.PART_HEAD.LOSS", "cross_entropy", "DATASETS.TRAIN", ("nobody_knows_it",))
    with EventStorage():
        _, losses = module(None, features(), [proposals(TWICE)], [targets((0, TWICE))])
    assert torch.isfinite(sum(losses.values()))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("key", ["USE_SIGMOID_CE", "USE_FED_LOSS"])
def test_detectron2s_keys_for_the_loss_are_refused_before_it_asks_for_more_of_them(heads, key):
    with pytest.raises(ValueError, match=f"set MODEL.ROI_BOX_HEAD.{key} False"):
        tiny_heads(heads, f"MODEL.ROI_BOX_HEAD.{key}", True)
