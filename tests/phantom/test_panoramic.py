"""Panoramic patients and views."""

import numpy as np
import pytest

from implantdet.phantom import panoramic
from implantdet.phantom.lines import default_lines

BICON = tuple(line for line in default_lines() if line.system == "Bicon")


@pytest.fixture(scope="module")
def patients():
    return [panoramic.sample_patient(np.random.default_rng(seed), BICON) for seed in range(3)]


def test_panoramics_have_one_to_thirteen_implants(patients):
    for patient in patients:
        assert 1 <= len(patient.implants) <= 13
        assert patient.modality == "panoramic"


def test_apices_point_away_from_the_bite(patients):
    for patient in patients:
        middle = np.median(patient.canvas.y)
        for implant in patient.implants:
            down = implant.axis[1] > 0
            assert abs(implant.axis[1]) > 0.75
            assert down == (implant.y > middle - 12 and down)  # lower implants point down
            column, row = np.round(patient.canvas.pixels(np.array(implant.at(0.7 * implant.solid.length)))).astype(int)
            assert patient.canvas.bone[row, column] > 0.3


@pytest.mark.parametrize("size", [(120, 240), (160, 160)])
def test_views_fill_the_file(patients, size):
    for seed, patient in enumerate(patients):
        view = panoramic.sample_view(np.random.default_rng(seed), patient, size)
        assert view.size == size
        shown = np.array(view.scale) * max(size)
        assert 60 < shown.min() < shown.max() < 240


@pytest.mark.parametrize("size", [(120, 240), (160, 160)])
def test_sensors_stay_on_the_canvas(patients, size):
    """Else the anatomy would be mirrored."""
    rows, columns = np.mgrid[0 : size[0] : 8, 0 : size[1] : 8]
    for seed in range(60):
        patient = patients[seed % len(patients)]
        view = panoramic.sample_view(np.random.default_rng(seed), patient, size)
        inside = view.frame.distance(view.size)[rows, columns] > 0
        pixels = np.stack([columns[inside], rows[inside]]) + 0.5
        x, y = np.linalg.inv(view.matrix[:, :2]) @ (pixels - view.matrix[:, 2:])
        canvas = patient.canvas
        assert canvas.x0 <= x.min() <= x.max() <= canvas.x0 + canvas.width
        assert canvas.y0 - 2.5 <= y.min() <= y.max() <= canvas.y0 + canvas.height + 2.5  # of what leans, the corners


def test_sites_are_32_and_disjoint():
    sites = panoramic._sites(np.random.default_rng(0))
    assert len(sites) == 32
    for upper in (True, False):
        xs = sorted(x for jaw, _, _, x in sites if jaw == upper)
        assert np.diff(xs).min() > 4


@pytest.mark.parametrize("count", [1, 6, 13])
def test_chosen_sites_are_distinct_and_no_third_molars(count):
    rng = np.random.default_rng(1)
    sites = panoramic._sites(rng)
    chosen = panoramic._choose(rng, sites, count)
    assert len(chosen) == count
    assert all(sites[index][2] < 7 for index in chosen)
