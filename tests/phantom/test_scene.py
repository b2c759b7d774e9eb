"""Placement of implants and geometry of views."""

import numpy as np
import pytest
from phantom_scenes import implant, view

from implantdet.phantom.scene import view_matrix


def test_points_along_a_leaning_implant():
    placed = implant(x=3.0, y=4.0, angle=np.pi / 6)
    assert placed.at(10.0) == pytest.approx((3 + 5, 4 + 10 * np.sqrt(0.75)))
    assert placed.at(0.0, across=2.0) == pytest.approx((3 + 2 * np.sqrt(0.75), 4 - 1))


def test_leaning_adds_to_tilt_and_spin():
    seen = implant(tilt=0.1, spin=0.2).leaning(0.05, -0.1)
    assert (seen.tilt, seen.spin) == pytest.approx((0.15, 0.1))


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_views_turn_and_stretch_but_never_mirror(upper, turn):
    matrix = view_matrix((5.0, 6.0), (0.1, 0.2), 0.05, turn, upper, (100, 200))
    assert matrix[:, :2] @ (5.0, 6.0) + matrix[:, 2] == pytest.approx((100, 50))
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(1 / 0.1 / 0.2)


def test_scale_is_millimetres_per_pixel():
    assert view(mm=(0.07, 0.12), turn=0.3).scale == pytest.approx((0.07, 0.12))


def test_project():
    assert view(mm=(0.1, 0.1), centre=(20.0, 10.0)).project((21.0, 12.0)) == pytest.approx((210, 220))
