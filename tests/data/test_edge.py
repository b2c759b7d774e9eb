"""What the frame of a radiograph cuts off."""

import pytest
from detectron2.structures import BoxMode

from implantdet.data.edge import touches_frame

RECORD = {"width": 100, "height": 60}


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((1, 1, 99, 59), False),
        ((0.9, 1, 99, 59), True),
        ((1, 0.9, 99, 59), True),
        ((1, 1, 99.1, 59), True),
        ((1, 1, 99, 59.1), True),
        ((40, 20, 60, 40), False),
    ],
)
def test_a_pixel_from_the_frame(box: tuple[float, float, float, float], touches: bool) -> None:
    x0, y0, x1, y1 = box
    corners = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS}
    sides = {"bbox": (x0, y0, x1 - x0, y1 - y0), "bbox_mode": BoxMode.XYWH_ABS}
    assert touches_frame(corners, RECORD) is touches_frame(sides, RECORD) is touches
