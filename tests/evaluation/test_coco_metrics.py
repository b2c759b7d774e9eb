"""Parity with pycocotools on generated data, and cases by hand."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from implantdet.evaluation.coco_metrics import coco_metrics

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def rectangle(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def generate(seed, num_images=40, num_classes=4, crowd=0.1, ties=False, size=400, masks=False):
    """Ground truth and detections: jittered copies, wrong classes, false positives, images without either."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, "width": size, "height": size} for i in range(num_images)]
    categories = [
        {"id": 2 * k + 5, "name": f"class {k}"} for k in range(num_classes + 1)
    ]  # the last has no annotations
    annotations, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 8)):
            w, h = rng.choice([12, 50, 150], 2) * rng.uniform(0.8, 1.2, 2)
            x, y = rng.uniform(0, size - np.array([w, h]))
            box = [float(x), float(y), float(w), float(h)]
            category_id = categories[rng.integers(num_classes)]["id"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": box,
                    "area": float(w * h),
                    "iscrowd": int(rng.random() < crowd),
                    "segmentation": rectangle(box),
                }
            )
            for _ in range(rng.integers(0, 4)):
                jittered = np.array(box) * rng.normal(1, 0.05, 4)
                wrong = categories[rng.integers(num_classes + 1)]["id"]
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": category_id if rng.random() < 0.8 else wrong,
                        "bbox": [float(value) for value in jittered],
                        "score": float(np.round(rng.random(), 1) if ties else rng.random()),
                    }
                )
    if masks:
        for detection in detections:
            detection["segmentation"] = mask_util.frPyObjects(rectangle(detection["bbox"]), size, size)[0]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def by_pycocotools(ground_truth, detections, iou_type):
    ground_truth, detections = copy.deepcopy(ground_truth), copy.deepcopy(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt = COCO()
        coco_gt.dataset = ground_truth
        coco_gt.createIndex()
        if iou_type == "segm":
            for detection in detections:
                del detection["bbox"]
        evaluation = COCOeval(coco_gt, coco_gt.loadRes(detections), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def percent(values):
    values = values[values > -1]
    return 100 * values.mean() if values.size else math.nan


@pytest.mark.parametrize(
    ("iou_type", "settings"),
    [
        ("bbox", {}),
        ("bbox", {"crowd": 0.5}),
        ("bbox", {"ties": True}),
        ("bbox", {"num_images": 300, "num_classes": 12}),
        ("segm", {"masks": True}),
        ("segm", {"masks": True, "ties": True, "crowd": 0.0}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_parity_with_pycocotools(iou_type, settings, seed):
    ground_truth, detections = generate(seed, **settings)
    metrics = coco_metrics(ground_truth, detections, iou_type)
    reference = by_pycocotools(ground_truth, detections, iou_type)
    expected = [100 * value if value > -1 else math.nan for value in reference.stats]
    assert [metrics[key] for key in KEYS] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    precision, recall = reference.eval["precision"][..., 0, -1], reference.eval["recall"][..., 0, -1]
    by_iou = [percent(of_threshold) for of_threshold in precision]
    assert metrics["AP_by_iou"] == pytest.approx(by_iou, abs=1e-6, nan_ok=True)
    for index, category in enumerate(ground_truth["categories"]):
        found = metrics["per_class"][category["name"]]
        assert found["AP"] == pytest.approx(percent(precision[:, :, index]), abs=1e-6, nan_ok=True)
        assert found["AP50"] == pytest.approx(percent(precision[0, :, index]), abs=1e-6, nan_ok=True)
        assert found["AP75"] == pytest.approx(percent(precision[5, :, index]), abs=1e-6, nan_ok=True)
        assert found["AR100"] == pytest.approx(percent(recall[:, index]), abs=1e-6, nan_ok=True)


def one_box(score=0.9, shift=0.0):
    ground_truth = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return ground_truth, [{"image_id": 1, "category_id": 1, "bbox": [shift, 0, 100, 100], "score": score}]


def test_a_shifted_box_by_hand():
    # IoU 75 / 125 = 0.6: right at the thresholds 0.50, 0.55 and 0.60, so AP is 3 of 10.
    metrics = coco_metrics(*one_box(shift=25.0))
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"]) == pytest.approx((30, 100, 0))
    assert metrics["AP_by_iou"] == pytest.approx([100] * 3 + [0] * 7)
    assert (metrics["AR1"], metrics["ARl"]) == pytest.approx((30, 30))
    assert math.isnan(metrics["APs"])
    assert metrics["per_class"]["a"] == pytest.approx(
        {"AP": 30, "AP50": 100, "AP75": 0, "AR100": 30, "num_annotations": 1}
    )
    assert math.isnan(metrics["per_class"]["b"]["AP"])
    assert metrics["per_class"]["b"]["num_annotations"] == 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_score_nothing(iou_type):
    ground_truth, _ = generate(0, masks=True)
    metrics = coco_metrics(ground_truth, [], iou_type)
    assert (metrics["AP"], metrics["AR100"]) == (0, 0)


def test_nothing_to_find_cannot_be_scored():
    ground_truth, detections = one_box()
    ground_truth["annotations"] = []
    assert math.isnan(coco_metrics(ground_truth, detections)["AP"])


def test_size_of_a_mask_is_its_own_area_not_its_box():
    ground_truth, detections = one_box()
    triangle = [[0.0, 0.0, 100.0, 0.0, 0.0, 100.0]]  # 5000 pixels: medium; its box is large
    ground_truth["annotations"][0] |= {"segmentation": triangle, "area": 5000}
    detections[0]["segmentation"] = mask_util.frPyObjects(triangle, 200, 200)[0]
    metrics = coco_metrics(ground_truth, detections, "segm")
    assert metrics["APm"] == pytest.approx(100)
    assert math.isnan(metrics["APl"])
