"""Detection expected calibration error (D-ECE; Küppers et al., CVPR Workshops 2020, arXiv:2004.13546)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from implantdet.evaluation.coco_metrics import matched

NUM_BINS = 10


def detection_calibration(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> float:
    """How far scores are from the share of right detections.

    Detections go into ``NUM_BINS`` bins of their score. The difference between the mean score of a bin and its share
    of true positives (of the right class, at IoU 0.5) counts as much as the bin has detections. Scores are the only
    thing that is binned; position and size of the boxes are not.

    Args:
        ground_truth: COCO content, as for ``coco_metrics``.
        detections: COCO results.

    Returns:
        D-ECE in percent, 0 is best; NaN without detections.
    """
    calibration = matched(ground_truth, detections).calibration(n_bins=NUM_BINS)
    return 100 * float(calibration["ece"]) if calibration["num_detections"] else float("nan")
