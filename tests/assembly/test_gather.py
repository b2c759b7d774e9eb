import numpy as np
import pytest
import torch
from implant_scenes import CLASSES, make_instances

from implantdet.assembly.gather import Meaning, drop_weak, gather, meanings, usable
from implantdet.taxonomy import default_taxonomy

MEANINGS = meanings(CLASSES, default_taxonomy())
BOX, SHIFTED, FAR = (10, 10, 30, 40), (11, 11, 31, 41), (100, 10, 120, 40)


def kind(name):
    return CLASSES.index(name)


def parts_of(*rows):
    boxes, scores, names = zip(*rows, strict=True)
    return gather(usable(make_instances(boxes, scores, [kind(n) for n in names]), MEANINGS), MEANINGS)


def test_meanings_of_classes():
    found = meanings(["caries", "middle.thread.square", "Bego"], default_taxonomy())
    assert found == (None, Meaning("middle", "middle.thread", "square"), Meaning("system", "system", "Bego"))
    with pytest.raises(ValueError, match="is a part or a system"):
        meanings(["caries"], default_taxonomy())


def test_useless_detections_are_passed_over():
    nan = float("nan")
    boxes = [BOX, BOX, (nan, 0, 1, 1), (5, 5, 5, 9), BOX, (0, 0, float("inf"), 1)]
    instances = make_instances(boxes, [0.5, nan, 0.5, 0.5, 7.0, 0.5], [0] * 6)
    found = usable(instances, MEANINGS)
    assert found.indices.tolist() == [0, 4]
    assert found.scores.tolist() == [0.5, 1.0]


def test_classes_without_a_meaning_are_passed_over_and_unknown_ones_refused():
    classes = meanings(["caries", "Bego"], default_taxonomy())
    assert usable(make_instances([BOX, BOX], [1, 1], [0, 1]), classes).indices.tolist() == [1]
    with pytest.raises(ValueError, match="expected 0…1"):
        usable(make_instances([BOX], [1], [2]), classes)


def test_names_that_only_look_like_parts_are_told(caplog):
    meanings(["middle.thread.square", "crown", "Bego"], default_taxonomy())
    assert not caplog.records
    meanings(["middle.thread.square", "middle.thread.V-shaped", "crown"], default_taxonomy())
    assert "Classes 'middle.thread.V-shaped' look like parts, but are none of the taxonomy" in caplog.text


def test_coincident_axes_of_one_third_become_one_part():
    (part,) = parts_of((BOX, 0.9, "middle.body.straight"), (SHIFTED, 0.3, "middle.thread.square"))
    assert part.third == "middle"
    assert part.score == 0.9
    assert {(r.axis, r.value, r.detection) for r in part.readings} == {
        ("middle.body", "straight", 0),
        ("middle.thread", "square", 1),
    }
    assert part.box == pytest.approx((10.25, 10.25, 30.25, 40.25))  # weights 0.9 : 0.3


def test_other_thirds_and_other_places_stay_apart():
    rows = [(BOX, 0.9, "middle.body.straight"), (BOX, 0.9, "apical.body.straight"), (FAR, 0.9, "middle.body.straight")]
    assert len(parts_of(*rows)) == 3


@pytest.mark.parametrize(
    ("name", "shift", "count"),  # the boxes are 20 wide: shifted by 10 the IoU is 1/3, by 12 it is 1/4
    [("middle.body.straight", 10, 1), ("middle.body.straight", 12, 2), ("ITI", 6, 1), ("ITI", 10, 2)],
)
def test_thirds_need_less_overlap_than_whole_implants_to_be_one(name, shift, count):
    rows = [(BOX, 0.9, name), ((10 + shift, 10, 30 + shift, 40), 0.8, name)]
    assert len(parts_of(*rows)) == count


def test_a_second_value_of_an_axis_is_a_rival():
    (part,) = parts_of((BOX, 0.4, "middle.body.tapered"), (SHIFTED, 0.6, "middle.body.straight"))
    assert [(r.value, r.score) for r in part.readings] == [("straight", 0.6)]
    assert [(r.value, r.score) for r in part.rivals] == [("tapered", 0.4)]


def test_whole_implants_gather_too():
    (part,) = parts_of((BOX, 0.7, "ITI"), (SHIFTED, 0.2, "Bego"))
    assert (part.third, part.readings[0].value, part.rivals[0].value) == ("system", "ITI", "Bego")


def test_the_order_of_detections_makes_no_difference():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 60, (30, 2))
    boxes = np.hstack([boxes, boxes + rng.uniform(15, 40, (30, 2))])
    scores, classes = rng.random(30), rng.integers(0, len(CLASSES), 30)
    order = rng.permutation(30)
    plain = gather(usable(make_instances(boxes, scores, classes), MEANINGS), MEANINGS)
    mixed = gather(usable(make_instances(boxes[order], scores[order], classes[order]), MEANINGS), MEANINGS)
    assert [part.box for part in plain] == [part.box for part in mixed]
    assert [[r.detection for r in part.readings] for part in plain] == [
        [order[r.detection] for r in part.readings] for part in mixed
    ]


@pytest.mark.parametrize("turns", range(4))
def test_of_equal_scores_the_one_in_the_middle_leads_however_the_image_is_turned(turns):
    boxes = np.array([[0, 0, 30, 30], [13, 0, 43, 30], [26, 0, 50, 30]])  # the outer ones hardly overlap
    for _ in range(turns):
        boxes = np.stack([-boxes[:, 3], boxes[:, 0], -boxes[:, 1], boxes[:, 2]], axis=1)
    (part,) = parts_of(*[(box, 1.0, "middle.body.straight") for box in boxes])
    assert part.box == pytest.approx(boxes.mean(axis=0))


def test_an_image_of_surer_detections_raises_no_threshold():
    detections = usable(make_instances([BOX] * 2, [0.9, 0.3], [0, 0]), MEANINGS)
    assert len(drop_weak(detections, np.full(len(CLASSES), 0.25), typical_best=0.3).scores) == 2


def test_adaptive_thresholds():
    detections = usable(make_instances([BOX] * 3, [0.3, 0.2, 0.1], [0, 0, 1]), MEANINGS)
    thresholds = np.full(len(CLASSES), 0.25)
    thresholds[1] = 0.05
    assert drop_weak(detections, thresholds, typical_best=0.3).indices.tolist() == [0, 2]
    # Everything in this image scores a third of what it does elsewhere: so does the threshold.
    assert drop_weak(detections, thresholds, typical_best=0.9).indices.tolist() == [0, 1, 2]
    none = usable(make_instances([], [], []), MEANINGS)
    assert not len(drop_weak(none, thresholds, 0.9).scores)
    assert gather(none, MEANINGS) == []


def test_scores_may_be_of_half_precision():
    half = make_instances([BOX], [0.5], [kind("middle.body.straight")])
    half.scores = half.scores.to(torch.bfloat16)
    assert usable(half, MEANINGS).scores.tolist() == [0.5]
