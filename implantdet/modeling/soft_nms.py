"""Soft-NMS: overlapping detections of a category lose score instead of vanishing (arXiv:1704.04503)."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

MOST = 5000  # detections of a category; those of many versions of an image, at a low threshold, would fill the memory


def soft_nms(instances: Instances, sigma: float, score_thresh: float) -> Instances:
    """Lower the score of each detection by its overlap with better ones of its category; the Gaussian form.

    Args:
        instances: detections of one image with ``pred_boxes``, ``scores`` and ``pred_classes``.
        sigma: width of the Gaussian, > 0; a score is multiplied by exp(−IoU² / sigma).
        score_thresh: what falls to this score or below is dropped. Of a category, the best ``MOST`` are looked at.

    Returns:
        Detections with their new scores, best first.
    """
    scores = instances.scores.clone()
    order = scores.argsort(descending=True, stable=True)
    # A table of pairs for each category alone: one of all detections would grow with the square of their number.
    for category in instances.pred_classes.unique():
        same = order[instances.pred_classes[order] == category]
        scores[same[MOST:]] = 0.0
        same = same[:MOST]
        scores[same] = _decayed(instances.pred_boxes[same], scores[same], sigma, score_thresh)
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] > score_thresh]
    result = instances[kept]
    result.scores = scores[kept]
    return result


def _decayed(boxes: Boxes, scores: Tensor, sigma: float, score_thresh: float) -> Tensor:
    """New scores of one category; those that fall to the threshold are not followed any further."""
    decay = torch.exp(-(pairwise_iou(boxes, boxes) ** 2) / sigma).to(scores)
    waiting = torch.ones_like(scores)
    for _ in range(len(scores)):
        best = int((scores * waiting).argmax())
        if not scores[best] * waiting[best] > score_thresh:
            break
        waiting[best] = 0
        scores = torch.where(waiting > 0, scores * decay[best], scores)
    return scores
