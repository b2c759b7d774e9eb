"""What the frame of a radiograph cuts off."""

from __future__ import annotations

from typing import Any

from detectron2.structures import BoxMode

EDGE = 1.0  # pixels; a box that comes this close to the frame may be cut


def touches_frame(annotation: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the box of an annotation comes so close to the frame of its dataset dict that it may be cut."""
    x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return min(x0, y0) < EDGE or x1 > record["width"] - EDGE or y1 > record["height"] - EDGE
