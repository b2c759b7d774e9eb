"""The losses for long tails that a benchmark compares with."""

import importlib

import pytest
import torch
from conftest import REPOSITORY
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


@pytest.fixture
def long_tail(monkeypatch):
    """Heads for two values of an axis, of 100 and 25 annotations, and a system; a predictor of the given class."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    module = importlib.import_module("_long_tail")

    def build(name):
        shape, box = ShapeSpec(channels=2), Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
        found = getattr(module, name)(shape, box2box_transform=box, num_classes=3, cls_agnostic_bbox_reg=True)
        found.counts = torch.tensor([100.0, 25.0, 7.0])
        return found

    return build


def test_federated_no_counts_for_what_a_batch_shows(long_tail):
    predictor = long_tail("FederatedPredictor")
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert predictor.counting(targets).tolist() == [0, 1, 0]  # half of three is one
    drawn = [predictor.counting(torch.zeros(2, 3)) for _ in range(400)]
    share = torch.stack(drawn).mean(0)  # by the square root of the frequency: 10, 5 and √7
    torch.testing.assert_close(share, torch.tensor([10, 5, 7**0.5]) / (15 + 7**0.5), atol=0.1, rtol=0)


def test_seesaw_factors_by_hand(long_tail):
    predictor = long_tail("SeesawPredictor")
    predictor.rivals = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    logits = torch.tensor([0.8, 0.4, 0.6]).logit().expand(3, 3)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    weights = predictor.factors(logits, targets)
    # The first is right, four times as frequent, and scores higher: the second is softened by (1/4)^0.8.
    # The second is right: the first, more frequent, is not softened, and scores twice as high: (0.8 / 0.4)².
    torch.testing.assert_close(weights[0, 1:], torch.tensor([0.25**0.8, 1.0]))
    torch.testing.assert_close(weights[1, ::2], torch.tensor([4.0, 1.0]))
    assert weights[2].tolist() == [1, 1, 1]

    # They multiply the exponential of the rival's logit: log(1 + S·e^z) instead of log(1 + e^z).
    one = Instances((9, 9), proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]])), gt_classes=torch.tensor([1]))
    one.gt_boxes, one.gt_labels, one.gt_label_weights = one.proposal_boxes, targets[1:2], torch.ones(1, 3)
    with EventStorage():
        losses = predictor.losses((torch.cat([logits[1:2], torch.zeros(1, 1)], dim=1), torch.zeros(1, 4)), [one])
    no = torch.log1p(torch.tensor([4.0, 1.0]) * logits[1, ::2].exp())
    torch.testing.assert_close(losses["loss_cls"], no.sum() - torch.tensor(0.4).log())
