import numpy as np
import pytest
import torch
from detections_in_a_row import detections
from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config
from implantdet.modeling.soft_nms import soft_nms
from implantdet.modeling.uniting import Uniter


def uniter(**changes):
    values = {"nms_thresh": 0.3, "soft_nms_sigma": 0.0, "voting_iou": 0.5, "score_thresh": 0.05, "topk": 100}
    return Uniter(**values | changes)


def rows(instances):
    """(x1, x2, score, class), as ``detections`` takes them."""
    boxes = instances.pred_boxes.tensor[:, [0, 2]].tolist()
    named = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    return [(*box, score, category) for box, score, category in named]


def test_a_vote_by_hand():
    """IoU 8/10 with the best: weights 0.9 and 0.8 · 0.6. The third overlaps too little to vote, by 4/10."""
    (first,) = rows(uniter()([detections((0, 10, 0.9, 0), (0, 8, 0.6, 0), (0, 4, 0.5, 0))]))
    assert first == pytest.approx((0, (0.9 * 10 + 0.48 * 8) / 1.38, 0.9, 0))


def test_other_categories_have_no_vote():
    found = rows(uniter()([detections((0, 10, 0.9, 0), (0, 8, 0.6, 1))]))
    assert [row[1] for row in found] == pytest.approx([10, 8])


def test_what_nobody_else_supports_stays_where_it_is():
    apart = detections((0, 10, 0.9, 0), (50, 60, 0.3, 0), (20, 20, 0.2, 1))  # the last one has no area
    assert np.array(rows(uniter()([apart]))) == pytest.approx(np.array(rows(apart)))


def test_scores_are_means_over_the_versions():
    """Both see the first; the second stands in one version, by two candidates, of which the better one counts."""
    versions = [
        detections((0, 10, 0.9, 0), (50, 60, 0.8, 0), (50, 59, 0.7, 0)),
        detections((0, 9, 0.5, 0), (50, 60, 0.6, 1)),
    ]
    found = rows(uniter()(versions))
    assert [row[2:] for row in found] == [(pytest.approx(0.7), 0), (pytest.approx(0.4), 0), (pytest.approx(0.3), 1)]
    assert found[0][1] == pytest.approx((0.9 * 10 + 0.9 * 0.5 * 9) / (0.9 + 0.45))
    assert uniter(score_thresh=0.35)(versions).scores.tolist() == pytest.approx([0.7, 0.4])
    assert uniter(topk=1)(versions).scores.tolist() == pytest.approx([0.7])


def test_without_voting_soft_nms_is_all():
    candidates = detections((0, 10, 0.9, 0), (0, 8, 0.8, 0), (50, 60, 0.3, 1))
    found = uniter(soft_nms_sigma=0.5, voting_iou=0.0, topk=2)([candidates])
    assert rows(found) == rows(soft_nms(candidates, 0.5, 0.05)[:2])


def test_nothing_unites_to_nothing():
    assert len(uniter()([detections()])) == len(uniter()([detections(), detections()])) == 0
    assert rows(uniter()([detections(), detections((0, 10, 0.9, 0))])) == [pytest.approx((0, 10, 0.45, 0))]


def config(*options):
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def test_from_a_config():
    assert Uniter.from_config(config()) is None
    options = ("MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3)
    options += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.02, "TEST.DETECTIONS_PER_IMAGE", 7)
    assert Uniter.from_config(config(*options)) == Uniter(0.3, 0.0, 0.4, 0.02, 7)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOFT_NMS_SIGMA", -0.5, r"must be above 0, .*; found -0\.5"),
        ("BOX_VOTING_IOU", 1.5, r"found 1\.5, expected a number in \[0, 1\]"),
    ],
)
def test_numbers_out_of_their_range(key, value, expected):
    with pytest.raises(ValueError, match=rf"MODEL\.PART_HEAD\.{key}:? {expected}"):
        Uniter.from_config(config(f"MODEL.PART_HEAD.{key}", value))


def test_soft_nms_and_votes_exclude_each_other():
    options = ("MODEL.PART_HEAD.SOFT_NMS_SIGMA", 0.5, "MODEL.PART_HEAD.BOX_VOTING_IOU", 0.4)
    with pytest.raises(ValueError, match=r"SIGMA is 0\.5, and BOX_VOTING_IOU 0\.4: .* set one of them to 0\.0"):
        Uniter.from_config(config(*options))


def test_votes_are_not_rounded_in_mixed_precision():
    versions = [detections((900.5, 960.25, 0.9, 0), (901.25, 958.75, 0.8, 0))]
    plain = rows(uniter()(versions))
    with torch.autocast("cpu", torch.bfloat16):
        assert rows(uniter()(versions)) == plain
