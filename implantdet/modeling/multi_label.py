"""Targets when several categories stand on one box, and when some questions have no answer.

R: proposals of an image; M: its ground-truth boxes; K: categories; A: axes; T: thirds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

from implantdet.taxonomy import SYSTEM, THIRDS

logger = logging.getLogger(__name__)

_INSIDE = 0.5  # a box lies in an implant if at least this fraction of its area does
_SAME = 0.5  # IoU from which annotations of one third speak of the same implant
_NEAR = 0.3  # IoU with a third from which a proposal shows some of it


@dataclass(frozen=True)
class CategoryTable:
    """Which axis each category answers, which third each axis belongs to, and which categories are whole implants.

    Attributes:
        category_axis: (K, A), 1.0 where the category is a value of the axis.
        axis_third: (A, T), 1.0 where the axis belongs to the third.
        is_system: (K,) bool, True for whole implants.
    """

    category_axis: Tensor
    axis_third: Tensor
    is_system: Tensor

    @classmethod
    def from_names(cls, names: Sequence[str], supercategories: Sequence[str]) -> CategoryTable:
        """Build the table from category names ``<third>.<axis>.<value>`` and their supercategories, in their order.

        Categories outside the taxonomy's form belong to no axis: they are ordinary detection classes.
        """
        pairs = list(zip(names, supercategories, strict=True))
        keys = [name.rpartition(".")[0] if third in THIRDS else "" for name, third in pairs]
        axes = list(dict.fromkeys(key for key in keys if key))
        third_of = {key: third for key, (_, third) in zip(keys, pairs, strict=True)}
        return cls(
            category_axis=_membership(keys, axes),
            axis_third=_membership([third_of[axis] for axis in axes], THIRDS),
            is_system=torch.tensor([third == SYSTEM for _, third in pairs]),
        )

    @classmethod
    def of_dataset(cls, name: str, num_classes: int) -> CategoryTable:
        """The table of a registered dataset, by ``thing_classes`` and ``supercategories`` of its metadata.

        Without the latter (a third of ``THIRDS`` for parts, ``system`` for whole implants), as where Detectron2 itself
        has read a COCO file, no category has an axis; a warning says so if names look like parts.
        """
        metadata = MetadataCatalog.get(name)
        if not hasattr(metadata, "thing_classes"):
            DatasetCatalog.get(name)  # many datasets know their classes only after they were read
        names = getattr(metadata, "thing_classes", [""] * num_classes)
        if len(names) != num_classes:
            raise ValueError(
                f"dataset '{name}' has {len(names)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}"
            )
        if not hasattr(metadata, "supercategories") and any(name.count(".") == 2 for name in names):
            logger.warning(
                "The metadata of %s have no 'supercategories': values that nobody could assess count as no. Expected "
                "a list with one of %s, %s or anything else for every one of thing_classes.",
                *(name, ", ".join(THIRDS), SYSTEM),
            )
        supercategories = getattr(metadata, "supercategories", [""] * num_classes)
        if len(supercategories) != num_classes:
            raise ValueError(
                f"dataset '{name}': the metadata have {len(supercategories)} supercategories for {num_classes} "
                f"classes; expected one of {', '.join(THIRDS)}, {SYSTEM} or anything else for each class"
            )
        return cls.from_names(names, supercategories)

    def to(self, device: torch.device) -> CategoryTable:
        """The same table on a device."""
        return CategoryTable(self.category_axis.to(device), self.axis_third.to(device), self.is_system.to(device))


def _membership(members: Sequence[str], groups: Sequence[str]) -> Tensor:
    """(members, groups), 1.0 where a member carries the name of a group."""
    rows = [[float(member == group) for group in groups] for member in members]
    return torch.tensor(rows).reshape(len(members), len(groups))  # the shape holds without any, too


def multi_label_targets(
    proposals: Boxes,
    gt_boxes: Boxes,
    gt_classes: Tensor,
    matcher: Matcher,
    table: CategoryTable,
    gt_implants: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Label each proposal with every category whose ground-truth box it matches.

    A category whose best IoU falls where the matcher says *ignore* has weight 0, and so have the categories of axes
    that are not assessable (``not_assessable``). All other weights are 1.

    Args:
        proposals: R boxes.
        gt_boxes: M boxes, which may coincide.
        gt_classes: (M,) category of each, in [0, K).
        matcher: its thresholds decide, category by category.
        table: of the K categories, on the device of the boxes.
        gt_implants: (M,) number of the implant that each annotation is of, < 0 where nobody knows; None: nowhere.

    Returns:
        (R, K) targets, 0 or 1, and (R, K) weights, 0 or 1.
    """
    num_proposals, num_classes = len(proposals), len(table.is_system)
    iou = pairwise_iou(gt_boxes, proposals)
    best = iou.new_zeros(num_classes, num_proposals)
    best.scatter_reduce_(0, gt_classes[:, None].expand_as(iou), iou, "amax")
    _, labels = matcher(best.view(1, -1))
    labels = labels.view(num_classes, num_proposals).T
    positive = labels == 1
    if gt_implants is None:
        gt_implants = torch.full_like(gt_classes, -1)
    unknown = not_assessable(positive, proposals, gt_boxes, gt_classes, table, gt_implants)
    return positive.float(), ((labels >= 0) & ~unknown).float()


def not_assessable(
    positive: Tensor,
    proposals: Boxes,
    gt_boxes: Boxes,
    gt_classes: Tensor,
    table: CategoryTable,
    gt_implants: Tensor,
) -> Tensor:
    """Find the categories that a proposal may have although nobody says so. Absence of a label is no label here.

    1. A proposal near a third of an implant, unless it is known to be something else: the axes of this third without
       an annotation.
    2. A proposal that matches nothing but lies in a whole implant: every axis of the thirds that show no annotation
       at all in this implant, because there is no box to be near to. This needs annotations of whole implants. If the
       implant shows no third at all, its own box may be one: a proposal that matches nothing but this box counts, too.
    3. A proposal that matches nothing but lies round a part of an implant that nobody named: every system.

    Annotations are of one implant if ``gt_implants`` says so; where it says nothing, if their boxes lie on one another.

    Returns:
        (R, K) bool; False for every category of an axis that the proposal matches a value of.
    """
    part_third = table.category_axis[gt_classes] @ table.axis_third  # (M, T)
    is_one = gt_implants[:, None] == gt_implants
    is_known = (gt_implants >= 0)[:, None] & (gt_implants >= 0)
    unanswered = unanswered_axes(gt_boxes, gt_classes, gt_implants, table)
    near = (pairwise_iou(proposals, gt_boxes) >= _NEAR).float()  # (R, M)

    is_implant = table.is_system[gt_classes]
    implants, parts = gt_boxes[is_implant], gt_boxes[~is_implant]
    is_part_of = torch.where(
        is_known[is_implant][:, ~is_implant],
        is_one[is_implant][:, ~is_implant],
        pairwise_ioa(implants, parts) >= _INSIDE,
    )
    is_nameless = ~is_part_of.any(dim=0) & part_third[~is_implant].any(dim=1)
    may_be_whole = (pairwise_ioa(proposals, parts[is_nameless]) >= _INSIDE).any(dim=1) & ~positive.any(dim=1)  # (R,)
    shown = is_part_of.float() @ part_third[~is_implant]  # (implants, T)
    inside = (pairwise_ioa(implants, proposals) >= _INSIDE).float()  # (implants, R)
    hidden = inside.T @ (shown == 0).float()  # (R, T)
    is_bare = inside.T @ (shown == 0).all(dim=1).float() > 0  # (R,), in an implant of which nothing is shown

    answered = positive.float() @ table.category_axis  # (R, A)
    of_third = answered @ table.axis_third @ table.axis_third.T > 0  # (R, A), the third of the axis is matched
    is_nothing = ~positive.any(dim=1) | (is_bare & ~positive[:, ~table.is_system].any(dim=1))
    is_open = of_third | is_nothing[:, None]
    unknown = (near @ unanswered.float() + hidden @ table.axis_third.T > 0) & is_open & (answered == 0)
    return (unknown.float() @ table.category_axis.T > 0) | (may_be_whole[:, None] & table.is_system)


def unanswered_axes(gt_boxes: Boxes, gt_classes: Tensor, gt_implants: Tensor, table: CategoryTable) -> Tensor:
    """(M, A) bool: the axes of an annotation's third that no annotation of this third of the implant answers.

    Annotations are of one implant as in ``not_assessable``.
    """
    part_axis = table.category_axis[gt_classes]  # (M, A)
    is_one = gt_implants[:, None] == gt_implants
    is_known = (gt_implants >= 0)[:, None] & (gt_implants >= 0)
    same = torch.where(is_known, is_one, pairwise_iou(gt_boxes, gt_boxes) >= _SAME).float()
    return (part_axis @ table.axis_third @ table.axis_third.T > 0) & (same @ part_axis == 0)
