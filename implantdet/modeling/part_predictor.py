"""The box predictor of the part detector: several categories on one box, losses by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from implantdet.modeling.losses import CLASS_WEIGHTINGS, ClassWeights, multi_label_loss, weighted_cross_entropy

LOSSES = ("cross_entropy", "binary_cross_entropy", "focal")
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")  # Detectron2's
_PRIOR = 0.01  # probability that an untrained model gives each category (RetinaNet, arXiv:1708.02002, section 4.1)


class PartPredictor(FastRCNNOutputLayers):
    """Detectron2's box predictor with one sigmoid per category, so that categories do not compete for a box.

    With ``cross_entropy`` it is Detectron2's own: a softmax over categories that exclude each other. The other losses
    read the fields ``gt_labels`` and ``gt_label_weights`` that ``ImplantROIHeads`` gives to proposals.

    Boxes are regressed class-agnostically: categories that share a box share its geometry, so every annotation of a
    third, however rare its category, trains the same four numbers, and all detections of a proposal have one box.

    Args:
        input_shape: of the features of a proposal.
        loss: one of ``LOSSES``.
        focal_gamma: focusing parameter of the focal loss, 0 or >= 1.
        focal_alpha: share of *yes* in the focal loss, in [0, 1]; < 0 switches the balance off.
        class_weighting: one of ``CLASS_WEIGHTINGS``.
        given_class_weights: one per category, for the weighting ``given``.
        effective_number_beta: for the weighting ``effective_number``.
        train_datasets: registered datasets whose annotations are counted for the weights, when training begins.
        objectness_weight: share of the proposal's objectness o in the score of a category that has the probability p,
            p^(1 - share) · o^share, in [0, 1); of a cascade, in its first stage. A proposal that lies well is likelier
            to have a high one.
        **kwargs: of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: a name is unknown, a number out of its range, class weights are given that are not read, or boxes
            are to be regressed per category with a loss that knows no single one.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        loss: str = "binary_cross_entropy",
        focal_gamma: float = 2.0,
        focal_alpha: float = 0.25,
        class_weighting: str = "none",
        given_class_weights: Sequence[float] = (),
        effective_number_beta: float = 0.999,
        train_datasets: Sequence[str] = (),
        objectness_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= objectness_weight < 1:
            raise ValueError(
                f"MODEL.PART_HEAD.OBJECTNESS_WEIGHT: found {objectness_weight}, expected a number in [0, 1)"
            )
        if loss not in LOSSES:
            raise ValueError(f"MODEL.PART_HEAD.LOSS: found {loss!r}, expected one of {', '.join(LOSSES)}")
        if class_weighting not in CLASS_WEIGHTINGS:
            raise ValueError(
                f"MODEL.PART_HEAD.CLASS_WEIGHTING: found {class_weighting!r}, "
                f"expected one of {', '.join(CLASS_WEIGHTINGS)}"
            )
        # Between 0 and 1 the gradient has no bound where the model is right.
        if not (focal_gamma == 0 or focal_gamma >= 1) or focal_alpha > 1:
            raise ValueError(
                f"found MODEL.PART_HEAD.FOCAL_GAMMA {focal_gamma}, expected 0 or a number >= 1, and "
                f"FOCAL_ALPHA {focal_alpha}, expected a number <= 1"
            )
        if not 0 <= effective_number_beta < 1:
            raise ValueError(
                f"MODEL.PART_HEAD.EFFECTIVE_NUMBER_BETA: found {effective_number_beta}, expected a number in [0, 1)"
            )
        if given_class_weights and class_weighting != "given":
            raise ValueError(
                f"MODEL.PART_HEAD.CLASS_WEIGHTS are given, but CLASS_WEIGHTING {class_weighting!r} does not read them: "
                "set MODEL.PART_HEAD.CLASS_WEIGHTING given"
            )
        if kwargs.get("box_reg_loss_type", BOX_LOSSES[0]) not in BOX_LOSSES:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE: found {kwargs['box_reg_loss_type']!r}, expected one of "
                f"{', '.join(BOX_LOSSES)}"
            )
        multi_label = loss != "cross_entropy"
        if multi_label and not kwargs.get("cls_agnostic_bbox_reg"):
            raise ValueError(
                f"MODEL.PART_HEAD.LOSS '{loss}' puts several categories on one box, which needs one regression for all "
                "of them: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"
            )
        super().__init__(input_shape, use_sigmoid_ce=multi_label, **kwargs)
        self.multi_label = multi_label
        self.objectness_weight = objectness_weight
        self.elementwise = partial(F.binary_cross_entropy_with_logits, reduction="none")
        self.is_focal = loss == "focal"
        if self.is_focal:
            self.elementwise = partial(
                sigmoid_focal_loss, alpha=focal_alpha if focal_alpha >= 0 else -1.0, gamma=focal_gamma, reduction="none"
            )
        self.get_class_weights = ClassWeights(
            class_weighting,
            self.num_classes,
            datasets=train_datasets,
            given=given_class_weights,
            beta=effective_number_beta,
        )
        if multi_label:
            nn.init.constant_(self.cls_score.bias, -math.log(1 / _PRIOR - 1))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments of the constructor from a config with the keys of ``add_implantdet_config``."""
        check_loss_keys(cfg)
        arguments = super().from_config(cfg, input_shape)
        del arguments["use_sigmoid_ce"], arguments["use_fed_loss"]
        return arguments | {
            "loss": cfg.MODEL.PART_HEAD.LOSS,
            "focal_gamma": cfg.MODEL.PART_HEAD.FOCAL_GAMMA,
            "focal_alpha": cfg.MODEL.PART_HEAD.FOCAL_ALPHA,
            "class_weighting": cfg.MODEL.PART_HEAD.CLASS_WEIGHTING,
            "given_class_weights": cfg.MODEL.PART_HEAD.CLASS_WEIGHTS,
            "effective_number_beta": cfg.MODEL.PART_HEAD.EFFECTIVE_NUMBER_BETA,
            "train_datasets": cfg.DATASETS.TRAIN,
            "objectness_weight": cfg.MODEL.PART_HEAD.OBJECTNESS_WEIGHT,
        }

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """[R, K + 1] scores of the proposals of every image; the last column means nothing here."""
        share = self.objectness_weight
        return [
            # What a cascade has moved is no proposal of the RPN any more.
            probs ** (1 - share) * proposal.objectness_logits.sigmoid()[:, None] ** share
            if share and proposal.has("objectness_logits")
            else probs
            for probs, proposal in zip(super().predict_probs(predictions, proposals), proposals, strict=True)
        ]

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """The classification loss that was asked for, and Detectron2's loss of the boxes.

        With several labels on a proposal Detectron2's ``fast_rcnn/fg_cls_accuracy``, which knows one of them, means
        nothing. ``fast_rcnn/label_recall`` and ``label_precision`` are logged instead, at a probability of 1/2.

        Args:
            predictions: logits (R, K + 1) and deltas (R, 4), as ``forward`` returns them.
            proposals: with the fields that Detectron2 reads, ``gt_labels`` (Ri, K) and ``gt_label_weights`` (Ri, K).
        """
        logits, deltas = predictions
        # The training set is counted when the first loss is asked for: a model that only predicts needs none.
        weights = self.get_class_weights().to(logits.device)
        gt_classes = cat([proposal.gt_classes for proposal in proposals])
        if not self.multi_label:
            loss = weighted_cross_entropy(logits, gt_classes, weights)
            losses = super().losses(predictions, proposals)
            return losses | {"loss_cls": loss * self.loss_weight.get("loss_cls", 1.0)}
        targets = cat([proposal.gt_labels for proposal in proposals])
        label_weights = cat([proposal.gt_label_weights for proposal in proposals])
        boxes = cat([proposal.proposal_boxes.tensor for proposal in proposals])
        # An image without annotations has no gt_boxes, and no proposal whose box is regressed.
        gt_boxes = cat(
            [
                (proposal.gt_boxes if proposal.has("gt_boxes") else proposal.proposal_boxes).tensor
                for proposal in proposals
            ]
        )
        _log_labels(logits[:, :-1] > 0, targets > 0, label_weights > 0)
        losses = {
            "loss_cls": multi_label_loss(
                logits[:, :-1], targets, label_weights, weights, self.elementwise, per_positive=self.is_focal
            ),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}


def check_loss_keys(cfg: CfgNode) -> None:
    """Refuse what would be another way to choose the loss.

    Raises:
        ValueError: one of Detectron2's keys for it is set.
    """
    for key in ("USE_SIGMOID_CE", "USE_FED_LOSS"):
        if cfg.MODEL.ROI_BOX_HEAD[key]:
            raise ValueError(f"set MODEL.ROI_BOX_HEAD.{key} False: the loss is chosen by MODEL.PART_HEAD.LOSS")


def _log_labels(found: Tensor, targets: Tensor, known: Tensor) -> None:
    """Log how many of the labels are found, and how many of those that are found are right; each (R, K) bool."""
    found = found & known
    right = int((found & targets).sum())
    storage = get_event_storage()
    for name, total in (("label_recall", targets.sum()), ("label_precision", found.sum())):
        if total:
            storage.put_scalar(f"fast_rcnn/{name}", right / int(total))
