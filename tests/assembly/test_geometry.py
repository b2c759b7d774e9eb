import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from implantdet.assembly.geometry import (
    angle_to_axis,
    centres,
    enclosing_size,
    intersection_area,
    iou,
    mean_axis,
    oriented_size,
    reading_order,
    sizes,
    union,
    unit,
)


def direction(degrees):
    return np.array([-np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])


def corners_box(length, width, degrees):
    """Box round the four corners of a tilted rectangle, by rotating them."""
    u = direction(degrees)
    n = np.array([-u[1], u[0]])
    corners = np.array([i * length / 2 * u + j * width / 2 * n for i in (-1, 1) for j in (-1, 1)])
    return np.r_[corners.min(axis=0), corners.max(axis=0)]


def test_centres_and_sizes():
    box = np.array([[10.0, 20.0, 16.0, 40.0]])
    assert centres(box).tolist() == [[13, 30]]
    assert sizes(box).tolist() == [[6, 20]]


@pytest.mark.parametrize("degrees", [0, 7, 25, -25, 65, 90, 115, 180, -150])
def test_length_and_width_are_recovered_from_the_box(degrees):
    box = corners_box(30.0, 20.0, degrees)
    length, width = oriented_size(sizes(box), direction(degrees), 20 / 30)
    assert (length, width) == pytest.approx((30, 20), rel=1e-6)


@pytest.mark.parametrize("degrees", [45, 44, -45, 135])
def test_at_45_degrees_the_usual_aspect_decides(degrees):
    # There, length and width enter the box by their sum alone: 30 + 20 = 50.
    box = corners_box(30.0, 20.0, degrees)
    length, width = oriented_size(sizes(box), direction(degrees), 1.0)
    assert length + width == pytest.approx(50, rel=0.02)
    assert width / length == pytest.approx(1.0, abs=0.15)
    upright = oriented_size(sizes(corners_box(30.0, 20.0, 0)), direction(0), 1.0)
    assert upright == (pytest.approx(30, rel=0.01), pytest.approx(20, rel=0.01))


def test_no_third_is_thinner_than_a_share_of_its_box():
    length, width = oriented_size(np.array([40.0, 1.0]), direction(45), 1.0)
    assert min(length, width) >= 0.05 * 40


def test_enclosing_size_is_the_box_of_the_corners():
    for degrees in (0, 20, 45, 100):
        found = enclosing_size(np.array(30.0), np.array(20.0), direction(degrees))
        assert found == pytest.approx(sizes(corners_box(30.0, 20.0, degrees)))


def test_union_and_intersection():
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, -5.0, 20.0, 5.0], [30.0, 0.0, 31.0, 1.0]])
    assert union(boxes[:2]).tolist() == [0, -5, 20, 10]
    assert intersection_area(boxes[0], boxes).tolist() == [100, 25, 0]


def test_unit_vectors():
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0, 1]]


def test_the_mean_axis_has_no_sense():
    u = np.array([direction(10), -direction(10), direction(20), direction(0)])
    found = mean_axis(u, np.ones(4))
    assert angle_to_axis(found, direction(10)) == pytest.approx(0, abs=1e-6)
    weighted = mean_axis(u, np.array([0.0, 0.0, 1.0, 0.0]))
    assert angle_to_axis(weighted, direction(20)) == pytest.approx(0, abs=1e-6)


def test_angles_to_an_axis():
    u = np.array([direction(10), direction(190), direction(100), direction(-5)])
    assert np.degrees(angle_to_axis(u, direction(10))) == pytest.approx([0, 0, 90, 15], abs=1e-6)


def test_iou_equals_torchvisions():
    corners = np.random.default_rng(0).uniform(0, 50, (2, 40, 2, 2))
    a, b = np.concatenate([corners.min(axis=2), corners.max(axis=2) + 1], axis=-1)
    assert iou(a[:, None], b) == pytest.approx(box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy(), abs=1e-12)


def test_boxes_are_read_row_by_row():
    boxes = [(50, 300, 70, 400), (90, 105, 110, 205), (10, 100, 30, 200), (5, 320, 25, 420), (130, 95, 150, 195)]
    assert reading_order(boxes) == [2, 1, 4, 3, 0]
    assert reading_order([]) == []
