"""Edge of the sensor."""

import numpy as np
import pytest

from implantdet.phantom.frame import Frame, sample_frame


def test_distance_to_a_rounded_rectangle():
    frame = Frame((50, 40), (30, 20), 10.0, 0.0, 0.0, 0.0)
    distance = frame.distance((80, 100))
    assert distance[40, 50] == pytest.approx(20 - 0.5)  # pixel centres lie half a pixel off the corner of the grid
    assert distance[40, 79] == pytest.approx(0.5)
    # the corner itself is cut: (80, 60) is 10 (sqrt 2 - 1) pixels outside the arc
    assert distance[59, 79] == pytest.approx(10 - np.hypot(9.5, 9.5))


def test_turned_frames_leave_wedges():
    frame = Frame((50, 50), (50, 50), 0.0, 0.3, 0.0, 0.0)
    image = frame.apply(np.full((100, 100), 100.0, np.float32), frame.distance((100, 100)))
    assert image[1, 1] == 0
    assert image[50, 50] == 100
    assert 0.05 < (image == 0).mean() < 0.2


def test_rim_is_a_line_along_the_edge():
    frame = Frame((50, 50), (40, 40), 5.0, 0.0, 220.0, 7.0)
    image = frame.apply(np.full((100, 100), 100.0, np.float32), frame.distance((100, 100)))
    assert image[50, 0] == 7
    assert image[50, 11] == pytest.approx(220)
    assert image[50, 20] == 100


def test_letters_stay_near_their_corner():
    frame = Frame((200, 200), (200, 200), 0.0, 0.0, 0.0, 0.0, "F8", 255.0)
    image = frame.apply(np.full((400, 400), 100.0, np.float32), frame.distance((400, 400)))
    rows, columns = np.nonzero(image > 150)
    assert len(rows) > 10
    assert rows.max() < 60
    assert columns.max() < 100


def test_sampled_frames_cover_the_middle():
    for seed in range(30):
        frame = sample_frame(np.random.default_rng(seed), (64, 64), 0.2)
        assert frame.distance((64, 64))[32, 32] > 25
