import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from implant_outcomes import complete, found, inferred, known, outcome, part, ranking, whole_box

from implantdet.assembly.gather import meanings
from implantdet.evaluation.implant_metrics import (
    ANY,
    Scored,
    exact_grouping,
    frames_per_second,
    implant_metrics,
    inferred_recall,
    part_metrics,
    stage1_boxes,
    stage2_boxes,
)
from implantdet.taxonomy import default_taxonomy

CLASSES = ["coronal.level.bone", "Bego", "ITI"]
SYSTEMS = ("Bego", "ITI")


def instances(*rows):
    boxes, scores, classes = zip(*rows, strict=True) if rows else ((), (), ())
    return Instances(
        (100, 500),
        pred_boxes=Boxes(torch.tensor(np.array(boxes, np.float64).reshape(-1, 4))),
        scores=torch.tensor(scores, dtype=torch.float64),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_the_detectors_own_implants_by_system_and_once_without():
    said = instances(
        (whole_box(0), 0.6, 1), (whole_box(0), 0.9, 2), (whole_box(1), 0.3, 1), (whole_box(0), 0.99, 0)
    )  # the last is a part
    boxes = stage1_boxes(said, meanings(CLASSES, default_taxonomy()))
    named = [item for item in boxes if item.label != ANY]
    assert {(item.label, item.score) for item in named} == {("Bego", 0.6), ("ITI", 0.9), ("Bego", 0.3)}
    single = [item for item in boxes if item.label == ANY]
    assert single == [Scored(whole_box(0), 0.9, ANY), Scored(whole_box(1), 0.3, ANY)]
    assert stage1_boxes(instances(), meanings(CLASSES, default_taxonomy())) == []


@pytest.mark.parametrize(("shift", "number"), [(11, 2), (9, 1)])
def test_whole_implants_of_two_systems_are_one_from_an_overlap_of_a_half_on(shift, number):
    """Boxes of 30 × 10 pixels; shifted by s along the long side they have an IoU of (30 - s) / (30 + s)."""
    said = instances(((0, 0, 30, 10), 0.9, 1), ((shift, 0, 30 + shift, 10), 0.8, 2))
    single = [item for item in stage1_boxes(said, meanings(CLASSES, default_taxonomy())) if item.label == ANY]
    assert len(single) == number


def test_assembled_implants_stand_under_every_system_that_they_may_be():
    implant = found(0, complete(0, 0), score=0.8, rank=ranking(("ITI", 0.75), ("Bego", 0.25)))
    boxes = stage2_boxes(outcome([implant], []).assembly)
    assert [(item.label, pytest.approx(item.score)) for item in boxes] == [(ANY, 0.8), ("ITI", 0.6), ("Bego", 0.2)]
    assert stage2_boxes(outcome([replace(implant, ranking=None)], []).assembly) == [Scored(implant.box, 0.8, ANY)]


def boxes_of(*outcomes):
    return {result.image_id: stage2_boxes(result.assembly) for result in outcomes}


def test_ap_of_perfect_implants_with_and_without_their_system():
    right = [outcome([found(k, complete(k, 0))], [known(k)], image_id=k) for k in (1, 2)]
    metrics = implant_metrics(right, boxes_of(*right), SYSTEMS)
    assert metrics["any_system"]["AP"] == pytest.approx(100)
    assert metrics["by_system"]["AP"] == pytest.approx(100)
    assert metrics["any_system"]["APm"] == pytest.approx(100)  # 20 × 60 pixels
    assert math.isnan(metrics["any_system"]["APs"])
    assert metrics["by_system"]["per_class"]["ITI"]["num_annotations"] == 2
    assert metrics["any_system"]["D-ECE"] == pytest.approx(10)  # scores of 0.9, and all are right
    # An ITI of 0.9 × 0.9; that it might be a Bego of 0.9 × 0.1 counts for the AP alone.
    assert metrics["by_system"]["D-ECE"] == pytest.approx(19)


def test_a_wrong_system_costs_the_ap_by_system_only():
    rank = ranking(("Bego", 1.0), ("ITI", 0.0))
    wrong = outcome([found(0, complete(0, 0), rank=rank), found(1, complete(1, 3))], [known(0), known(1)])
    metrics = implant_metrics([wrong], boxes_of(wrong), SYSTEMS)
    assert metrics["any_system"]["AP"] == pytest.approx(100)
    assert metrics["by_system"]["per_class"]["ITI"]["AP"] == pytest.approx(100)  # it comes last, and still finds it
    assert metrics["by_system"]["per_class"]["ITI"]["AR100"] == pytest.approx(100)
    assert math.isnan(metrics["by_system"]["per_class"]["Bego"]["AP"])  # nothing to find
    none = implant_metrics([wrong], {}, SYSTEMS)
    assert none["any_system"]["AP"] == none["by_system"]["AP"] == 0
    assert math.isnan(none["any_system"]["D-ECE"])


def test_a_system_may_be_called_implant():
    """As implants of no brand are."""
    rank = ranking(("implant", 0.9), ("ITI", 0.1))
    result = outcome(
        [found(0, complete(0, 0), rank=rank), found(1, complete(1, 3))], [known(0, "implant"), known(1, "ITI")]
    )
    metrics = implant_metrics([result], boxes_of(result), ("ITI", "implant"))
    per_class = metrics["by_system"]["per_class"]
    assert [per_class[name]["num_annotations"] for name in ("ITI", "implant")] == [1, 1]
    assert metrics["by_system"]["AP"] == pytest.approx(100)
    assert list(metrics["any_system"]["per_class"]) == ["implant"]


def test_an_implant_without_annotated_system_is_nobodys_mistake():
    result = outcome([found(0, complete(0, 0)), found(1, complete(1, 3), score=0.8)], [known(0, None), known(1)])
    metrics = implant_metrics([result], boxes_of(result), SYSTEMS)
    assert metrics["by_system"]["AP"] == pytest.approx(100)
    assert metrics["any_system"]["AP"] == pytest.approx(100)
    assert metrics["by_system"]["per_class"]["ITI"]["num_annotations"] == 1
    named = outcome(result.assembly.implants, [known(0, "Bego"), known(1)])  # here the first is an ITI too many
    assert implant_metrics([named], boxes_of(named), SYSTEMS)["by_system"]["per_class"]["ITI"]["AP"] < 60


def test_a_detector_without_systems_has_no_ap_by_system():
    result = outcome([found(0, complete(0, 0))], [known(0)])
    metrics = implant_metrics([result], boxes_of(result), ())
    assert metrics["by_system"] is None
    assert metrics["any_system"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("groups", "unexplained", "expected"),
    [
        ([complete(0, 0), complete(1, 3)], [], 1.0),
        ([complete(0, 0), complete(1, 3)[:2]], complete(1, 3)[2:], 0.5),  # one third is left over
        ([complete(0, 0), complete(1, 3)[:2]], [], 1.0),  # it was not detected at all
        ([[*complete(0, 0)[:2], part(1, "apical", 5)], complete(1, 3)[:2]], [part(0, "apical", 2)], 0.0),  # swapped
        ([complete(0, 0), [*complete(1, 3)[:2], part(3, "apical", 9)]], [], 0.5),  # with a false positive
        ([complete(0, 0), [*complete(1, 3)[:2], inferred(1, "apical")]], [], 1.0),  # an inferred one is no detection
    ],
)
def test_exact_grouping_by_hand(groups, unexplained, expected):
    implants = [found(column, parts) for column, parts in enumerate(groups)]
    result = exact_grouping([outcome(implants, [known(0), known(1)], unexplained)])
    assert result == {"exact": expected, "num_implants": 2}


def test_grouping_of_nothing_is_nan():
    result = exact_grouping([outcome([], [known(0)])])
    assert math.isnan(result["exact"])
    assert result["num_implants"] == 0


def test_recall_of_inferred_thirds_by_hand():
    near, far = inferred(0, "apical", shift=5.0), inferred(1, "apical", shift=12.0)  # IoU 15/25 and 8/32
    implants = [found(0, [*complete(0, 0)[:2], near]), found(1, [*complete(1, 2)[:2], far])]
    truth = [known(0), known(1)]
    result = inferred_recall([outcome(implants, truth)])
    assert result == {"recall": 0.5, "precision": 0.5, "num_missed": 2, "num_inferred": 2, "num_judged": 2} | {
        "edges_within_95": 0.5  # shifted to the right by more than a deviation of a pixel allows
    }
    doubted = [found(0, [*complete(0, 0)[:2], near], score=0.4), implants[1]]
    result = inferred_recall([outcome(doubted, truth)])
    assert result == {"recall": 0.0, "precision": 0.0, "num_missed": 2, "num_inferred": 1, "num_judged": 1} | {
        "edges_within_95": 0.5
    }
    nothing = inferred_recall([outcome([], truth[:1])])
    assert (nothing["recall"], nothing["num_missed"], nothing["num_inferred"]) == (0.0, 3, 0)
    assert math.isnan(nothing["precision"]) and math.isnan(nothing["edges_within_95"])
    # A detection in no implant is still a detection: there was nothing to infer.
    left_over = outcome(implants[:1], truth[:1], [part(0, "apical", 9)])
    assert math.isnan(inferred_recall([left_over])["recall"])
    assert inferred_recall([left_over])["precision"] == 1  # and it lies where that third is


@pytest.mark.parametrize(("shift", "within"), [(1.9, 1.0), (-1.9, 1.0), (2.0, 0.5)])
def test_edges_of_inferred_thirds_are_held_against_their_deviations(shift, within):
    implants = [found(0, [*complete(0, 0)[:2], inferred(0, "apical", shift=shift)])]
    assert inferred_recall([outcome(implants, [known(0)])])["edges_within_95"] == within


def test_what_is_inferred_on_a_third_that_nobody_annotated_is_neither_right_nor_wrong():
    covered, shown = known(0), known(1)
    del covered.boxes["apical"]
    implants = [found(column, [*complete(column, 2 * column)[:2], inferred(column, "apical")]) for column in (0, 1)]
    result = inferred_recall([outcome(implants, [covered, shown])])
    assert result == {"recall": 1.0, "precision": 1.0, "num_missed": 1, "num_inferred": 2, "num_judged": 1} | {
        "edges_within_95": 1.0
    }
    # Of an implant that is not there, it is wrong.
    result = inferred_recall([outcome(implants, [shown])])
    assert (result["precision"], result["num_judged"]) == (0.5, 2)


def test_frames_per_second_are_those_of_the_median_image():
    assert frames_per_second([0.1, 0.2, 5.0]) == pytest.approx(5)
    assert math.isnan(frames_per_second([]))


def test_parts_are_averaged_without_systems_and_without_what_nobody_annotated():
    figures = {"AP": 20.0, "AP50": 40.0, "AP75": 10.0, "AR100": 30.0, "num_annotations": 3}
    nothing = dict.fromkeys(figures) | {"num_annotations": 0}
    per_class = {"a": figures, "b": figures | {"AP": 60.0}, "c": nothing, "Bego": figures | {"AP": 100.0}}
    expected = {"AP": 40.0, "AP50": 40.0, "AP75": 10.0, "AR100": 30.0, "num_categories": 2}
    assert part_metrics(per_class, ["a", "b", "c"]) == expected
    assert math.isnan(part_metrics(per_class, ["c"])["AP"])
