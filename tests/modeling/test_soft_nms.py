import math

import pytest
from detections_in_a_row import detections

from implantdet.modeling import soft_nms as soft_nms_module
from implantdet.modeling.soft_nms import soft_nms


def test_scores_by_hand():
    # IoU of the first two is 6/10. The third stands apart; the fourth coincides with the first in another category.
    result = soft_nms(detections((0, 10, 0.9, 0), (0, 6, 0.8, 0), (50, 60, 0.3, 0), (0, 10, 0.5, 1)), 0.5, 0.05)
    expected = {0.9, 0.5, 0.8 * math.exp(-0.36 / 0.5), 0.3}
    assert result.scores.tolist() == pytest.approx(sorted(expected, reverse=True))
    assert result.pred_classes.tolist() == [0, 1, 0, 0]


def test_decay_accumulates_and_reorders():
    # The third overlaps both others; after the first is taken, its score falls under that of the second.
    rows = [(0, 10, 0.9, 0), (5, 15, 0.5, 0), (0, 10, 0.8, 0)]
    result = soft_nms(detections(*rows), 0.5, 0.0)
    second = 0.5 * math.exp(-((1 / 3) ** 2) / 0.5)
    third = 0.8 * math.exp(-1 / 0.5) * math.exp(-((1 / 3) ** 2) / 0.5)
    assert result.scores.tolist() == pytest.approx([0.9, second, third])


def test_threshold_and_number():
    rows = [(0, 10, 0.9, 0), (0, 10, 0.3, 0), (50, 60, 0.2, 0), (70, 80, 0.1, 0)]
    assert soft_nms(detections(*rows), 0.5, 0.05).scores.tolist() == pytest.approx([0.9, 0.2, 0.1])


def test_no_detections():
    assert len(soft_nms(detections(), 0.5, 0.05)) == 0


def test_of_a_category_the_best_are_looked_at(monkeypatch):
    monkeypatch.setattr(soft_nms_module, "MOST", 2)
    rows = [(0, 10, 0.2, 0), (20, 30, 0.9, 0), (40, 50, 0.5, 0), (60, 70, 0.1, 1)]
    assert soft_nms(detections(*rows), 0.5, 0.0).scores.tolist() == pytest.approx([0.9, 0.5, 0.1])
