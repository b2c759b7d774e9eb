"""What an evaluation found, as ``Instances``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_convert


def instances_of(records: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[Instances]:
    """Detections in COCO's results format as ``Instances`` of every record; category ids count from 1."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for item in found:
        by_image.setdefault(item["image_id"], []).append(item)
    result = []
    for record in records:
        here = by_image.get(record["image_id"], [])
        boxes = torch.tensor([item["bbox"] for item in here]).reshape(-1, 4)
        instances = Instances((record["height"], record["width"]), pred_boxes=Boxes(box_convert(boxes, "xywh", "xyxy")))
        instances.scores = torch.tensor([item["score"] for item in here])
        instances.pred_classes = torch.tensor([item["category_id"] - 1 for item in here], dtype=torch.int64)
        result.append(instances)
    return result
