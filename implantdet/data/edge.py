"""What the frame of a radiograph cuts off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode

EDGE = 1.0  # pixels; a box that comes this close to the frame may be cut


def is_at_frame(box: Sequence[float], height: float, width: float) -> bool:
    """Whether an XYXY box comes so close to the frame of an image of this size that it may be cut."""
    x0, y0, x1, y1 = box
    return min(x0, y0) < EDGE or x1 > width - EDGE or y1 > height - EDGE


def touches_frame(annotation: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the box of an annotation comes so close to the frame of its dataset dict that it may be cut."""
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return is_at_frame(box, record["height"], record["width"])
