"""Millimetres and cells, path lengths of round bodies, projection into an image."""

import numpy as np
import pytest

from implantdet.phantom.canvas import Canvas, Column
from implantdet.phantom.scene import view_matrix


@pytest.fixture
def canvas():
    return Canvas(-10.0, -10.0, 20.0, 30.0, 0.1)


def test_cell_centres(canvas):
    assert canvas.tissue.shape == (300, 200)
    assert canvas.x[0, [0, -1]] == pytest.approx([-9.95, 9.95])
    assert canvas.pixels(np.array([-9.95, -9.85])) == pytest.approx([0, 1])


def test_patch_is_cut_at_the_edge(canvas):
    rows, columns = canvas.patch(np.array([-20, -20]), np.array([-9, -8]))
    assert (rows.start, columns.start) == (0, 0)
    assert canvas.patch(np.array([50, 50]), np.array([60, 60])) is None


def test_upright_column_has_the_chord_of_its_width(canvas):
    cells, path = Column((0.0, 0.0), 0.0, np.array([0.0, 10.0]), np.array([3.0, 3.0]), roundness=1.5).thickness(canvas)
    full = np.zeros_like(canvas.tissue)
    full[cells] = path
    column, row = np.round(canvas.pixels(np.array([1.75, 5.0]))).astype(int)
    x = canvas.x[0, column]
    assert full[row, column] == pytest.approx(1.5 * 2 * np.sqrt(9 - x**2), rel=1e-3)
    # its area: mean chord of a circle is pi r / 2, times width and height
    assert full.sum() * 0.01 == pytest.approx(1.5 * np.pi * 9 * 10, rel=0.01)


def test_turned_column_keeps_its_volume_and_points_the_right_way(canvas):
    column = Column((0.0, 0.0), 0.5, np.array([0.0, 8.0]), np.array([1.0, 1.0]))
    cells, path = column.thickness(canvas)
    assert path.sum() * 0.01 == pytest.approx(np.pi * 8, rel=0.02)
    full = np.zeros_like(canvas.tissue)
    full[cells] = path
    tip = np.round(canvas.pixels(np.array([7.5 * np.sin(0.5), 7.5 * np.cos(0.5)]))).astype(int)
    assert full[tip[1], tip[0]] == pytest.approx(2.0, abs=0.02)


def test_bodies_that_meet_share_the_row_between_them(canvas):
    total = np.zeros_like(canvas.tissue)
    for along in ([-5.0, 0.03], [0.03, 5.0]):
        cells, path = Column((0.0, 0.0), 0.0, np.array(along), np.array([2.0, 2.0])).thickness(canvas)
        total[cells] += path
    middle = total[60:140, 100]
    assert middle == pytest.approx(np.full(middle.shape, middle[0]), rel=1e-3)


def test_bent_axis(canvas):
    column = Column((0.0, 0.0), 0.0, np.array([0.0, 10.0]), np.array([1.0, 1.0]), bend=np.array([0.0, 4.0]))
    cells, path = column.thickness(canvas)
    full = np.zeros_like(canvas.tissue)
    full[cells] = path
    row = round(float(canvas.pixels(np.array([0.0, 5.0]))[1]))
    assert canvas.x[0, full[row].argmax()] == pytest.approx(2.0, abs=0.15)


def test_outside_the_canvas(canvas):
    assert Column((100.0, 0.0), 0.0, np.array([0.0, 1.0]), np.array([1.0, 1.0])).thickness(canvas) is None


def test_projection_puts_millimetres_where_the_view_says(canvas):
    canvas.tissue[:] = 0.5
    canvas.dense[round((5.0 + 10) / 0.1), round((2.0 + 10) / 0.1)] = 50.0
    matrix = view_matrix((0.0, 5.0), (0.1, 0.1), 0.0, 0.0, False, (100, 100))
    tissue, dense = canvas.project(matrix, (100, 100))
    row, column = np.unravel_index(dense.argmax(), dense.shape)
    assert (column, row) == (70, 50)  # 2 mm right of the middle
    assert tissue == pytest.approx(np.full((100, 100), 0.5))
