import math

import numpy as np
import pytest

from implantdet.evaluation.detection_calibration import detection_calibration

SIZE = 10


def truth(boxes, crowds=()):
    annotations = [
        {"id": k, "image_id": 1, "category_id": category, "bbox": box, "area": SIZE**2, "iscrowd": int(k in crowds)}
        for k, (category, box) in enumerate(boxes, start=1)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return {"images": [{"id": 1, "width": 9999, "height": 99}], "annotations": annotations, "categories": categories}


def box(place):
    return [2.0 * SIZE * place, 0.0, float(SIZE), float(SIZE)]


def detection(place, score, category=1):
    return {"image_id": 1, "category_id": category, "bbox": box(place), "score": score}


def test_by_hand():
    """Bins: (0.4, 0.5) one detection, right; (0.9, 1.0] three detections with a mean score of 0.95, one right."""
    ground_truth = truth([(1, box(0)), (2, box(1))])
    detections = [detection(0, 0.9), detection(5, 0.95), detection(6, 1.0), detection(1, 0.45, category=2)]
    expected = 1 / 4 * abs(1 - 0.45) + 3 / 4 * abs(1 / 3 - 0.95)
    assert detection_calibration(ground_truth, detections) == pytest.approx(100 * expected)


def test_a_detection_is_right_from_an_overlap_of_a_half_on():
    """Boxes of 10 × 10 pixels, moved by 2 (IoU 2/3) and by 4 (3/7)."""
    near, far = ({**detection(0, 0.9), "bbox": [shift, 0.0, 10.0, 10.0]} for shift in (2.0, 4.0))
    assert detection_calibration(truth([(1, box(0))]), [near]) == pytest.approx(10)
    assert detection_calibration(truth([(1, box(0))]), [far]) == pytest.approx(90)


def test_there_are_ten_bins():
    """0.82 (right) and 0.98 (wrong) are in bins of their own; in one of a fifth they would make up for each other."""
    found = [detection(0, 0.82), detection(5, 0.98)]
    assert detection_calibration(truth([(1, box(0))]), found) == pytest.approx(100 * (0.5 * 0.18 + 0.5 * 0.98))


def test_the_wrong_class_and_a_second_detection_are_wrong():
    ground_truth = truth([(1, box(0))])
    assert detection_calibration(ground_truth, [detection(0, 0.85, category=2)]) == pytest.approx(85)
    assert detection_calibration(ground_truth, [detection(0, 0.85), detection(0, 0.83)]) == pytest.approx(34)


def test_what_lies_on_a_crowd_does_not_count():
    detections = [detection(0, 0.75), detection(1, 0.85)]
    assert detection_calibration(truth([(1, box(0)), (1, box(1))], crowds=[2]), detections) == pytest.approx(25)


@pytest.mark.parametrize(("power", "low", "high"), [(1, 0, 15), (3, 20, 100)])
def test_scores_that_are_probabilities_are_calibrated(power, low, high):
    """Detections are right as often as their score says, or far more often: as its third root says."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 90)  # COCO looks at the best 100 of an image and class
    detections = [detection(place, score) for place, score in enumerate(scores)]
    right = rng.random((40, 90)) < scores ** (1 / power)
    errors = [detection_calibration(truth([(1, box(k)) for k in np.flatnonzero(row)]), detections) for row in right]
    assert low < np.mean(errors) < high


def test_without_detections_there_is_nothing_to_calibrate():
    assert math.isnan(detection_calibration(truth([(1, box(0))]), []))
