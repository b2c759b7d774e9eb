"""ROI heads for design parts: boxes that coincide, axes that nobody could assess.

They work in any Detectron2 project, with its own backbone and its own registered dataset::

    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from implantdet.config import add_implantdet_config

    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file("my_project.yaml")
    cfg.DATASETS.TRAIN = ("my_dataset",)
    cfg.MODEL.ROI_HEADS.NAME = "ImplantROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True  # where there is a mask head
    model = build_model(cfg)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances

from implantdet.modeling.multi_label import CategoryTable, multi_label_targets
from implantdet.modeling.part_predictor import PartPredictor, check_loss_keys
from implantdet.modeling.uniting import Uniter


class _PartLabels(ROIHeads):
    """What the plain and the cascade heads share: multi-label targets, Soft-NMS and box voting.

    Args:
        train_datasets: registered training sets; the metadata of the first say which axis a category answers
            (``CategoryTable.of_dataset``).
        uniter: how candidates become detections; None: by Detectron2's own NMS.
        proposal_append_gt: whether annotated boxes are proposals, too, in training. Each is one, however many
            categories stand on it: its copies would take the place of others.
        **kwargs: of Detectron2's heads.
    """

    def __init__(
        self,
        *,
        train_datasets: Sequence[str] = (),
        uniter: Uniter | None = None,
        proposal_append_gt: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(proposal_append_gt=False, **kwargs)
        self.train_datasets = train_datasets
        self.append_distinct_gt = proposal_append_gt
        self.uniter = uniter
        self._category_table: CategoryTable | None = None
        predictors = [module for module in self.modules() if isinstance(module, FastRCNNOutputLayers)]
        # A predictor of another project may read the labels.
        self.multi_label = any(getattr(predictor, "multi_label", True) for predictor in predictors)
        if uniter is not None:  # it sees what the predictors' own NMS would drop
            for predictor in predictors:
                # No limit but the proposals' number: the copies of what is found well would push out what is not.
                predictor.test_nms_thresh, predictor.test_topk_per_image = 1.0, -1

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from a config with the keys of ``add_implantdet_config``.

        Raises:
            ValueError: masks are to be predicted per category, which coincident boxes do not allow, or Detectron2's own
                keys ask for a loss.
        """
        check_loss_keys(cfg)  # before Detectron2's predictor is built, which asks for the opposite
        multi_label = cfg.MODEL.PART_HEAD.LOSS != "cross_entropy"
        if multi_label and cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            raise ValueError(
                "categories that share a box share its mask: set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True "
                f"(MODEL.PART_HEAD.LOSS is '{cfg.MODEL.PART_HEAD.LOSS}')"
            )
        return super().from_config(cfg, input_shape) | {
            "train_datasets": cfg.DATASETS.TRAIN,
            "uniter": Uniter.from_config(cfg),
        }

    def category_table(self) -> CategoryTable:
        """Axes of the categories, read when training begins: a model that only predicts needs no training set."""
        if self._category_table is None:
            if self.train_datasets:
                self._category_table = CategoryTable.of_dataset(self.train_datasets[0], self.num_classes)
            else:
                self._category_table = CategoryTable.from_names([""] * self.num_classes, [""] * self.num_classes)
        return self._category_table

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Sample as Detectron2 does, then label each sampled proposal with all its categories; none for softmax."""
        if self.append_distinct_gt:
            proposals = add_ground_truth_to_proposals([_distinct(each.gt_boxes) for each in targets], proposals)
        sampled = super().label_and_sample_proposals(proposals, targets)
        return self._add_labels(sampled, targets, self.proposal_matcher)

    @torch.no_grad()
    def _add_labels(self, proposals: list[Instances], targets: list[Instances], matcher: Matcher) -> list[Instances]:
        if not self.multi_label:
            return proposals
        for proposals_per_image, targets_per_image in zip(proposals, targets, strict=True):
            boxes = proposals_per_image.proposal_boxes
            proposals_per_image.gt_labels, proposals_per_image.gt_label_weights = multi_label_targets(
                boxes,
                targets_per_image.gt_boxes,
                targets_per_image.gt_classes,
                matcher,
                self.category_table().to(boxes.device),
                targets_per_image.gt_implants if targets_per_image.has("gt_implants") else None,
            )
        return proposals

    def _forward_box(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._forward_box(*args, **kwargs)
        if self.training or not self.uniter:
            return output
        return [self.uniter([instances]) for instances in output]


def _distinct(boxes: Boxes) -> Boxes:
    """Boxes in their order, each once."""
    unique, which = boxes.tensor.unique(dim=0, return_inverse=True)
    places = torch.arange(len(boxes), device=which.device)
    first = places.new_full((len(unique),), len(boxes)).scatter_reduce(0, which, places, "amin")
    return boxes[first.sort().values]


@ROI_HEADS_REGISTRY.register()
class ImplantROIHeads(_PartLabels, StandardROIHeads):
    """``StandardROIHeads`` whose proposals carry every category that they match, with a ``PartPredictor``.

    Reads the keys of ``MODEL.PART_HEAD`` (``implantdet/config.py``) beside those of Detectron2's heads. In training,
    ``instances`` may have ``gt_implants``, (N,) int64, as ``RadiographMapper`` gives it: the ``implant_id`` of each
    annotation, below 0 where nobody knows; else parts belong together by where they are.

    Args:
        **kwargs: of ``_PartLabels`` and ``StandardROIHeads``.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        shape = arguments["box_head"].output_shape
        return arguments | {"box_predictor": PartPredictor(cfg, shape)}


@ROI_HEADS_REGISTRY.register()
class CascadeImplantROIHeads(_PartLabels, CascadeROIHeads):
    """``CascadeROIHeads`` with multi-label targets at every stage, each by the IoU threshold of its stage.

    Args:
        **kwargs: of ``_PartLabels`` and ``CascadeROIHeads``.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        predictors = [
            PartPredictor(cfg, head.output_shape, box2box_transform=stage.box2box_transform)
            for head, stage in zip(arguments["box_heads"], arguments["box_predictors"], strict=True)
        ]
        for predictor in predictors[1:]:  # the training set is counted once
            predictor.get_class_weights = predictors[0].get_class_weights
        return arguments | {"box_predictors": predictors}

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        labelled = super()._match_and_label_boxes(proposals, stage, targets)
        return self._add_labels(labelled, targets, self.proposal_matchers[stage])
