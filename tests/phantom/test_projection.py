"""Shadows of solids, against formulas and against rays that are walked step by step."""

import numpy as np
import pytest
from ray_march import march, plain_line

from implantdet.phantom.lines import default_lines
from implantdet.phantom.projection import cavity_path, chord, outer_path
from implantdet.phantom.solid import Solid

LINES = {line.title: line for line in default_lines()}


def grid(solid, step=0.1):
    u = np.arange(-3.5, 3.5, step, dtype=np.float32)
    s = np.arange(-1, solid.length + 1, step, dtype=np.float32)
    return np.broadcast_to(u[None], (s.size, u.size)).copy(), np.broadcast_to(s[:, None], (s.size, u.size)).copy()


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def test_chord_of_a_circle():
    # 2 sqrt(5² - 3²) = 8; outside the circle there is nothing
    assert chord(np.float32(5), np.array([0, 3, 5, 6], np.float32)) == pytest.approx([10, 8, 0, 0])


def test_plain_cylinder_follows_the_chord_formula():
    solid = Solid(plain_line(LINES["ITI BL"]), 4.0, 10.0)
    u = np.linspace(-1.9, 1.9, 39, dtype=np.float32)[None]
    path = outer_path(solid, u, np.full_like(u, 5.0), 0.0, 0.0)
    assert path[0] == pytest.approx(2 * np.sqrt(4 - u[0] ** 2), abs=0.06)


def test_leaning_cylinder_is_longer_along_the_ray_and_shorter_in_the_image():
    solid = Solid(plain_line(LINES["ITI BL"]), 4.0, 10.0)
    tilt = 0.3
    s = np.arange(0.7, 11, 0.01, dtype=np.float32)[:, None]
    path = outer_path(solid, np.zeros_like(s), s, tilt, 0.0)
    middle = path[abs(s[:, 0] - 5) < 0.1]
    assert middle == pytest.approx(np.full(middle.shape, 4 / np.cos(tilt)), rel=0.02)
    # the apical cap reaches to L cos + R sin in the image; a ray is sampled every 0.2 mm
    assert s[path[:, 0] > 0.05].max() == pytest.approx(10 * np.cos(tilt) + 2 * np.sin(tilt), abs=0.12)


@pytest.mark.parametrize("title", ["Bego RI", "Bicon", "ITI TL S", "ITI BLT", "other Active double lead"])
@pytest.mark.parametrize(("tilt", "spin"), [(0.0, 0.0), (0.2, 0.6)])
def test_agrees_with_marched_rays(title, tilt, spin):
    line = LINES[title]
    solid = Solid(line, line.diameters[1], line.lengths[1], roll=0.7)
    u, s = grid(solid)
    outer, metal = march(solid, u, s, tilt, spin)
    fast = outer_path(solid, u, s, tilt, spin)
    assert iou(fast > 0.12, outer > 0.12) >= 0.97
    path = np.maximum(fast - cavity_path(solid, u, s, tilt, spin, screw=0.0), 0)
    assert np.abs(path - metal)[outer > 0].mean() < 0.07 * metal[outer > 0].mean()


def test_thread_flanks_are_offset_by_half_a_pitch():
    line = plain_line(LINES["ITI TL S"], thread=("v_shaped", 1.2, 0.4, 1), thread_from=0.0)
    solid = Solid(line, 4.0, 12.0)
    s = np.arange(3, 9, 0.01, dtype=np.float32)[:, None]
    left = outer_path(solid, np.full_like(s, -1.85), s, 0.0, 0.0)[:, 0] > 0.3
    right = outer_path(solid, np.full_like(s, 1.85), s, 0.0, 0.0)[:, 0] > 0.3
    shift = round(0.6 / 0.01)
    assert (left[shift:] == right[:-shift]).mean() > 0.97
    assert (left == right).mean() < 0.6


def test_double_thread_has_flanks_in_step():
    line = plain_line(LINES["ITI TL S"], thread=("v_shaped", 1.2, 0.4, 2), thread_from=0.0)
    s = np.arange(3, 9, 0.01, dtype=np.float32)[:, None]
    flanks = [outer_path(Solid(line, 4.0, 12.0), np.full_like(s, u), s, 0.0, 0.0)[:, 0] > 0.3 for u in (-1.85, 1.85)]
    assert (flanks[0] == flanks[1]).mean() > 0.97


def test_hole_opens_to_the_viewer_and_hides_from_the_side():
    line = plain_line(LINES["ITI BL"], hole="round")
    solid = Solid(line, 4.0, 10.0)
    u, s = np.zeros((1, 1), np.float32), np.full((1, 1), solid.hole_size[2], np.float32)
    assert cavity_path(solid, u, s, 0.0, 0.0, 0.0)[0, 0] == pytest.approx(4.0, abs=0.01)
    assert cavity_path(solid, u, s, 0.0, np.pi / 2, 0.0)[0, 0] == pytest.approx(2 * 0.14 * 4.0, abs=0.01)


def test_screw_fills_the_channel_from_the_top():
    solid = Solid(LINES["ITI BL"], 4.1, 10.0)
    u, s = np.zeros((1, 1), np.float32), np.full((1, 1), 2.0, np.float32)
    assert cavity_path(solid, u, s, 0.0, 0.0, 0.0)[0, 0] > 1.0
    assert cavity_path(solid, u, s, 0.0, 0.0, 0.6)[0, 0] == 0
