"""COCO's metrics by hotcoco: the numbers of pycocotools, many times as fast.

Letters: T IoU thresholds (0.50, 0.55, … 0.95), R recall thresholds, K classes. Arrays of COCO have two axes more,
of which we take one entry each: area ranges (all, small, medium, large), limits of detections per image (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

IOU_50, IOU_75 = 0, 5  # indices in T


def coco_metrics(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_type: str = "bbox"
) -> dict[str, Any]:
    """Evaluate detections as COCO does.

    Args:
        ground_truth: COCO content: ``images``, ``annotations`` and ``categories``, boxes as [x, y, width, height].
        detections: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` or, for masks,
            ``segmentation``. May be empty: every AP is then 0.
        iou_type: ``bbox`` or ``segm``.

    Returns:
        ``AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl`` in percent; ``AP_by_iou``, the AP at every
        threshold from 0.50 to 0.95 in steps of 0.05; and ``per_class``: for every category name its ``AP, AP50, AP75,
        AR100`` in percent and ``num_annotations``. What cannot be computed, such as the AP of a class without ground
        truth, is NaN.
    """
    if iou_type == "segm":
        # With the box there, its area instead of the mask's would decide between small, medium and large.
        detections = [{key: value for key, value in item.items() if key != "bbox"} for item in detections]
    evaluation = matched(ground_truth, detections, iou_type)
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its table
        evaluation.summarize()
    metrics: dict[str, Any] = {
        key: _percent(np.asarray([value]))
        for key, value in zip(evaluation.metric_keys(), evaluation.stats, strict=True)
    }
    arrays = evaluation.eval
    assert arrays is not None, "accumulate() has run"
    precision = arrays["precision"][:, :, :, 0, -1]  # (T, R, K)
    metrics["AP_by_iou"] = [_percent(of_threshold) for of_threshold in precision]
    metrics["per_class"] = _per_class(ground_truth, evaluation, precision, arrays["recall"][:, :, 0, -1])
    return metrics


def matched(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_type: str = "bbox"
) -> hotcoco.COCOeval:
    """The evaluation of detections by hotcoco, as for ``coco_metrics``, after the matching.

    Image ids may be anything that Detectron2 allows, such as names.

    Raises:
        ValueError: a detection is on an image that the ground truth lacks.
    """
    number = {image["id"]: index for index, image in enumerate(ground_truth["images"])}
    if lacking := sorted({str(item["image_id"]) for item in detections if item["image_id"] not in number}):
        raise ValueError(f"found detections on {len(lacking)} images that the ground truth lacks, such as {lacking[0]}")
    images, annotations, found = (
        [{**item, key: number[item[key]]} for item in items]
        for key, items in (
            ("id", ground_truth["images"]),
            ("image_id", ground_truth["annotations"]),
            ("image_id", detections),
        )
    )
    coco_gt = hotcoco.COCO({**ground_truth, "images": images, "annotations": annotations})
    evaluation = hotcoco.COCOeval(coco_gt, coco_gt.load_res(found), iou_type)
    evaluation.evaluate()
    return evaluation


def _per_class(
    ground_truth: dict[str, Any],
    evaluation: hotcoco.COCOeval,
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
) -> dict[str, dict[str, float]]:
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in ground_truth["annotations"]:
        counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    return {
        names[category_id]: {
            "AP": _percent(precision[:, :, index]),
            "AP50": _percent(precision[IOU_50, :, index]),
            "AP75": _percent(precision[IOU_75, :, index]),
            "AR100": _percent(recall[:, index]),
            "num_annotations": counts[category_id],
        }
        for index, category_id in enumerate(evaluation.params.cat_ids)
    }


def _percent(values: NDArray[np.float64]) -> float:
    """Mean of what could be computed (COCO marks the rest by -1), in percent; NaN if nothing could."""
    values = values[values > -1]  # a single number becomes an array
    return float(100 * values.mean()) if values.size else float("nan")
