"""Questions that an annotation leaves open: what is found there is neither right nor false."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, BoxMode

from implantdet.modeling.multi_label import CategoryTable, unanswered_axes


def unanswered(annotations: Sequence[dict[str, Any]], table: CategoryTable) -> list[dict[str, Any]]:
    """Crowds, as COCO has them, where an image's annotations have no answer; as the training leaves out the same.

    An annotated third without a value of one of its axes (it is not assessable, or nobody looked) may have each of
    them: a copy of its annotation for all. An implant of which parts are annotated, but no system, may be of each: a
    box round the parts. A third that is not annotated at all has no place, and what is found of it stays false.

    Args:
        annotations: of one dataset dict; those of an implant share ``implant_id``, or a third's lie on one another.
        table: of the dataset's categories.

    Returns:
        Annotations with ``category_id``, ``bbox``, ``bbox_mode``, ``iscrowd`` 1 and ``segmentation``.
    """
    known = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
    if not known or not table.category_axis.any():
        return []
    boxes = torch.tensor([BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in known])
    implants = torch.tensor([a.get("implant_id", -1) for a in known])
    classes = torch.tensor([a["category_id"] for a in known])
    open_axes = unanswered_axes(Boxes(boxes), classes, implants, table)
    crowds = [
        {**known[index], "category_id": category, "iscrowd": 1}
        for index, category in (open_axes.float() @ table.category_axis.T).nonzero().tolist()
    ]
    is_system = table.is_system[classes]
    for implant in sorted(set(implants[~is_system].tolist()) - set(implants[is_system].tolist()) - {-1}):
        own = boxes[implants == implant]
        x0, y0, x1, y1 = torch.cat([own[:, :2].amin(dim=0), own[:, 2:].amax(dim=0)]).tolist()
        box = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 1}
        box["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        crowds += [{**box, "category_id": category} for category in table.is_system.nonzero().flatten().tolist()]
    return crowds
