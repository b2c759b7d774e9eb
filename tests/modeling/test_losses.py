import logging
import math
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from implantdet.modeling.losses import (
    class_weights,
    count_annotations,
    effective_number,
    inverse_frequency,
    multi_label_loss,
    weighted_cross_entropy,
)

BCE = partial(F.binary_cross_entropy_with_logits, reduction="none")
FOCAL = partial(sigmoid_focal_loss, alpha=0.25, gamma=2.0, reduction="none")
LOG3 = math.log(3)  # the logit of a probability of 3/4


def random_case(num_proposals=7, num_classes=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_proposals, num_classes, generator=generator)
    targets = (torch.rand(num_proposals, num_classes, generator=generator) < 0.3).float()
    return logits, targets, torch.ones_like(targets), torch.ones(num_classes)


def test_binary_cross_entropy_by_hand():
    # Probabilities 3/4 and 1/4; yes to the first, no to the second: −ln 3/4 twice, over one proposal.
    logits = torch.tensor([[LOG3, -LOG3]])
    targets, ones = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)
    assert multi_label_loss(logits, targets, ones, torch.ones(2), BCE).item() == pytest.approx(-2 * math.log(0.75))
    # A weight counts for yes only, and what has no label does not count.
    weights = torch.tensor([3.0, 5.0])
    assert multi_label_loss(logits, targets, ones, weights, BCE).item() == pytest.approx(-4 * math.log(0.75))
    unknown = torch.tensor([[1.0, 0.0]])
    assert multi_label_loss(logits, targets, unknown, weights, BCE).item() == pytest.approx(-3 * math.log(0.75))


def test_focal_by_hand():
    # Yes at p = 3/4: α (1 − p)² · −ln p = 1/4 · 1/16 · −ln 3/4. No at p = 3/4: 3/4 · 9/16 · −ln 1/4.
    logits = torch.tensor([[LOG3, LOG3]])
    loss = multi_label_loss(logits, torch.tensor([[1.0, 0.0]]), torch.ones(1, 2), torch.ones(2), FOCAL)
    assert loss.item() == pytest.approx(-math.log(0.75) / 64 - 27 / 64 * math.log(0.25))


def test_against_torch_and_torchvision():
    logits, targets, ones, unweighted = random_case()
    loss = multi_label_loss(logits, targets, ones, unweighted, FOCAL)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, targets, 0.25, 2.0, "sum") / 7)
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0])
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum") / 7
    torch.testing.assert_close(multi_label_loss(logits, targets, ones, weights, BCE), expected)


def test_per_positive_divides_by_the_proposals_that_are_something():
    logits, targets, ones, unweighted = random_case()
    number = sum(bool(row.any()) for row in targets)
    assert 0 < number < 7
    loss = multi_label_loss(logits, targets, ones, unweighted, FOCAL, per_positive=True)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, targets, 0.25, 2.0, "sum") / number)


def test_softmax_by_hand():
    # Probabilities 3/4 and 1/4 (background). Loss: category −w ln 3/4, background −ln 1/4, over two proposals.
    logits = torch.tensor([[LOG3, 0.0], [LOG3, 0.0]])
    loss = weighted_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([2.0]))
    assert loss.item() == pytest.approx((-2 * math.log(0.75) - math.log(0.25)) / 2)


@pytest.mark.parametrize("elementwise", [BCE, FOCAL])
@pytest.mark.parametrize("num_proposals", [0, 3])
def test_empty_and_all_negative_batches_are_finite_with_gradients(elementwise, num_proposals):
    logits = torch.zeros(num_proposals, 4, requires_grad=True)
    zeros = torch.zeros(num_proposals, 4)
    loss = multi_label_loss(logits, zeros, zeros + 1, torch.ones(4), elementwise)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad.shape == logits.shape
    assert (loss == 0) == (num_proposals == 0)
    empty = torch.zeros(num_proposals, 5, requires_grad=True)
    loss = weighted_cross_entropy(empty, torch.full((num_proposals,), 4), torch.ones(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert empty.grad is not None


def test_inverse_frequency_is_what_scikit_learn_calls_balanced():
    labels = [0] * 6 + [1] * 3 + [2]
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32)
    torch.testing.assert_close(inverse_frequency(torch.tensor([6.0, 3.0, 1.0])), expected)


def test_effective_number_by_hand():
    # β = 1/2: E(1) = 1, E(2) = 3/2, so weights 1 and 2/3 up to a factor; the mean over three annotations becomes 1.
    weights = effective_number(torch.tensor([1.0, 2.0], dtype=torch.float64), 0.5)
    torch.testing.assert_close(weights, torch.tensor([9 / 7, 6 / 7]))
    assert (weights * torch.tensor([1.0, 2.0])).sum() / 3 == pytest.approx(1.0)


def test_limits_of_the_effective_number():
    counts = torch.tensor([1.0, 10.0, 500.0], dtype=torch.float64)
    torch.testing.assert_close(effective_number(counts, 0.0), torch.ones(3))
    torch.testing.assert_close(effective_number(counts, 1 - 1e-9), inverse_frequency(counts), rtol=1e-3, atol=0)


def test_a_category_without_annotations_gets_weight_one():
    counts = torch.tensor([4.0, 0.0, 4.0], dtype=torch.float64)
    assert inverse_frequency(counts).tolist() == [1.0, 1.0, 1.0]
    assert effective_number(counts, 0.999).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.fixture
def dataset():
    categories = [[0, 0, 1], [], [0, 2], [0]]
    records = [{"annotations": [{"category_id": index} for index in image]} for image in categories]
    records.append({})  # nobody looked at it
    DatasetCatalog.register("counted", lambda: records)
    yield "counted"
    DatasetCatalog.remove("counted")
    MetadataCatalog.pop("counted", None)


def test_weights_are_counted_in_the_registered_set_and_logged(dataset, caplog):
    assert count_annotations([dataset], 4).tolist() == [4, 1, 1, 0]
    with caplog.at_level(logging.INFO):
        weights = class_weights("inverse_frequency", 4, [dataset])
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 2.0, 1.0]))
    assert "category 1: 1 annotations, weight 2.000" in caplog.text
    MetadataCatalog.get(dataset).thing_classes = ["dome", "flat", "cone", "open"]
    with caplog.at_level(logging.INFO):
        class_weights("effective_number", 4, [dataset])
    assert "category flat: 1 annotations, weight " in caplog.text


def test_crowds_are_not_counted_because_nothing_is_trained_on_them():
    annotations = [{"category_id": 0, "iscrowd": 1}, {"category_id": 0, "iscrowd": 0}, {"category_id": 1}]
    DatasetCatalog.register("with_crowds", lambda: [{"annotations": annotations}])
    try:
        assert count_annotations(["with_crowds"], 2).tolist() == [1, 1]
    finally:
        DatasetCatalog.remove("with_crowds")


def test_given_weights():
    assert class_weights("given", 2, given=[1, 2.5]).tolist() == [1.0, 2.5]
    assert class_weights("none", 2).tolist() == [1.0, 1.0]
    for given in ([1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf], ["1", "2"]):
        with pytest.raises(ValueError, match="expected 2 positive numbers, one per class"):
            class_weights("given", 2, given=given)


def test_nothing_to_count_is_an_error():
    with pytest.raises(
        ValueError, match=r"CLASS_WEIGHTING: 'inverse_frequency' counts .* DATASETS\.TRAIN, which is empty"
    ):
        class_weights("inverse_frequency", 4)
