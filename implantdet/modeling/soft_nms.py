"""Soft-NMS: overlapping detections of a category lose score instead of vanishing (arXiv:1704.04503)."""

from __future__ import annotations

import torch
from detectron2.structures import Instances, pairwise_iou


def soft_nms(instances: Instances, sigma: float, score_thresh: float, topk: int) -> Instances:
    """Lower the score of each detection by its overlap with better ones of its category; the Gaussian form.

    Args:
        instances: detections of one image with ``pred_boxes``, ``scores`` and ``pred_classes``.
        sigma: width of the Gaussian, > 0; a score is multiplied by exp(−IoU² / sigma).
        score_thresh: what falls to this score or below is dropped.
        topk: number of detections to keep; < 0 keeps all.

    Returns:
        Detections with their new scores, best first.
    """
    same = instances.pred_classes[:, None] == instances.pred_classes
    decay = torch.exp(-(pairwise_iou(instances.pred_boxes, instances.pred_boxes) ** 2) / sigma)
    decay = torch.where(same, decay, 1.0).to(instances.scores)
    scores = instances.scores.clone()
    waiting = torch.ones_like(scores)
    order = []
    for _ in range(len(scores)):
        best = int((scores * waiting).argmax())
        if not scores[best] * waiting[best] > score_thresh:
            break
        order.append(best)
        waiting[best] = 0
        scores = torch.where(waiting > 0, scores * decay[best], scores)
    kept = torch.tensor(order[:topk] if topk >= 0 else order, dtype=torch.long, device=scores.device)
    result = instances[kept]
    result.scores = scores[kept]
    return result
