"""From many candidates of one image to its detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from implantdet.modeling.soft_nms import soft_nms


@dataclass(frozen=True)
class Uniter:
    """Unites candidates category by category: by NMS, with or without box voting, or by Soft-NMS.

    In box voting, each detection that is kept gets the mean of the boxes of its category that overlap with it, weighted
    by their overlap and their score: many proposals know better than the best one where a third ends (Gidaris and
    Komodakis, arXiv:1505.01749, section 5.2). Where the candidates come from several versions of the image, the score
    of a detection is the mean over the versions of the best score there: what one version alone finds loses.

    Attributes:
        nms_thresh: IoU above which the worse of two detections of a category is dropped, in [0, 1].
        soft_nms_sigma: width of the Gaussian of Soft-NMS, which then replaces NMS; 0: NMS. It keeps rivals, so that
            nobody is left to vote.
        voting_iou: IoU from which a candidate votes, in (0, 1]; 0: no voting, and scores stay.
        score_thresh: score that a detection must exceed.
        topk: number of detections to keep; < 0 keeps all.
    """

    nms_thresh: float
    soft_nms_sigma: float
    voting_iou: float
    score_thresh: float
    topk: int

    def __post_init__(self) -> None:
        """Refuse what excludes each other."""
        if self.soft_nms_sigma > 0 and self.voting_iou > 0:
            raise ValueError(
                f"MODEL.PART_HEAD.SOFT_NMS_SIGMA is {self.soft_nms_sigma}, and BOX_VOTING_IOU {self.voting_iou}: "
                "detections that Soft-NMS keeps beside each other would vote on each other's boxes; set one of them "
                "to 0.0"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Uniter | None:
        """As ``MODEL.PART_HEAD`` asks for it; None if Detectron2's own NMS is enough.

        Raises:
            ValueError: a number is out of its range.
        """
        sigma, voting_iou = cfg.MODEL.PART_HEAD.SOFT_NMS_SIGMA, cfg.MODEL.PART_HEAD.BOX_VOTING_IOU
        if sigma < 0:
            raise ValueError(f"MODEL.PART_HEAD.SOFT_NMS_SIGMA must be above 0, or 0 for ordinary NMS; found {sigma}")
        if not 0 <= voting_iou <= 1:
            raise ValueError(f"MODEL.PART_HEAD.BOX_VOTING_IOU: found {voting_iou}, expected a number in [0, 1]")
        if sigma == voting_iou == 0:
            return None
        heads = cfg.MODEL.ROI_HEADS
        return cls(heads.NMS_THRESH_TEST, sigma, voting_iou, heads.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)

    def __call__(self, versions: list[Instances]) -> Instances:
        """Detections, best first.

        Args:
            versions: candidates with ``pred_boxes``, ``scores`` and ``pred_classes``, in pixels of one image: one set
                or more.
        """
        candidates = Instances.cat(versions)
        if self.soft_nms_sigma > 0:
            kept = soft_nms(candidates, self.soft_nms_sigma, self.score_thresh)
        else:
            boxes, scores = candidates.pred_boxes.tensor, candidates.scores
            kept = candidates[batched_nms(boxes, scores, candidates.pred_classes, self.nms_thresh)]
        if self.voting_iou > 0:
            kept = self._vote(kept, versions)
        best = kept.scores.argsort(descending=True, stable=True)
        best = best[kept.scores[best] > self.score_thresh]
        return kept[best[: self.topk] if self.topk >= 0 else best]

    def _vote(self, kept: Instances, versions: list[Instances]) -> Instances:
        boxes, scores = kept.pred_boxes.tensor.clone(), kept.scores.clone()
        for category in kept.pred_classes.unique():
            mine = kept.pred_classes == category
            rivals = [version[version.pred_classes == category] for version in versions]
            weights = [self._agreement(kept.pred_boxes[mine], version) for version in rivals]
            weight = torch.cat(weights, dim=1)
            total = weight.sum(dim=1, keepdim=True)
            theirs = torch.cat([version.pred_boxes.tensor for version in rivals])
            with torch.autocast(theirs.device.type, enabled=False):  # which would round to whole pixels
                mean = weight.to(theirs) @ theirs / total
            boxes[mine] = torch.where(total > 0, mean, boxes[mine])  # a box without an area overlaps with nothing
            if len(versions) > 1:
                best = [_best(weight > 0, version.scores) for weight, version in zip(weights, rivals, strict=True)]
                scores[mine] = torch.stack(best).mean(dim=0)
        return Instances(kept.image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=kept.pred_classes)

    def _agreement(self, boxes: Boxes, version: Instances) -> Tensor:
        """[K, N] weights of N candidates for K detections."""
        iou = pairwise_iou(boxes, version.pred_boxes)
        return torch.where(iou >= self.voting_iou, iou * version.scores, 0)


def _best(agrees: Tensor, scores: Tensor) -> Tensor:
    """[K] best score of the candidates that agree, [K, N]; 0 where none does."""
    if not len(scores):
        return scores.new_zeros(len(agrees))
    return torch.where(agrees, scores, 0).amax(dim=1)
