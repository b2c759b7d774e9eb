"""Periapical patients and views."""

from itertools import pairwise

import numpy as np
import pytest

from implantdet.phantom import periapical
from implantdet.phantom.lines import default_lines

ITI = tuple(line for line in default_lines() if line.system == "ITI")


@pytest.fixture(scope="module")
def patients():
    return [periapical.sample_patient(np.random.default_rng(seed), ITI) for seed in range(8)]


def test_patients_have_one_to_four_implants_of_their_system(patients):
    for patient in patients:
        assert 1 <= len(patient.implants) <= 4
        assert {implant.solid.line.system for implant in patient.implants} == {"ITI"}
        assert patient.modality == "periapical"
    assert len({patient.upper for patient in patients}) == 2


def test_implants_stand_apart_and_in_bone(patients):
    for patient in patients:
        xs = [implant.x for implant in patient.implants]
        assert all(right - left > 3.5 for left, right in pairwise(xs))
        for implant in patient.implants:
            x, y = implant.at(0.8 * implant.solid.length)
            column, row = np.round(patient.canvas.pixels(np.array([x, y]))).astype(int)
            assert patient.canvas.bone[row, column] > 0.5


def test_same_seed_same_anatomy():
    first, second = (periapical.sample_patient(np.random.default_rng(4), ITI) for _ in range(2))
    assert np.array_equal(first.canvas.tissue, second.canvas.tissue)
    assert [implant.x for implant in first.implants] == [implant.x for implant in second.implants]


def test_views_show_an_implant_at_a_natural_size(patients):
    for seed, patient in enumerate(patients):
        view = periapical.sample_view(np.random.default_rng(seed), patient, 200)
        assert view.size == (200, 200)
        inside = [
            0 <= x <= 200 and 0 <= y <= 200
            for implant in patient.implants
            for x, y in [view.project(implant.at(implant.solid.length / 2))]
        ]
        assert any(inside)
        assert 16 / 200 < view.scale[0] <= view.scale[1] < 48 / 200


def test_sensors_stay_on_the_canvas(patients):
    rows, columns = np.mgrid[0:200:8, 0:200:8]
    overlaps = []
    for patient in patients:
        canvas = patient.canvas
        for seed in range(20):
            view = periapical.sample_view(np.random.default_rng(seed), patient, 200)
            inside = view.frame.distance(view.size)[rows, columns] > 0
            pixels = np.stack([columns[inside], rows[inside]]) + 0.5
            x, y = np.linalg.inv(view.matrix[:, :2]) @ (pixels - view.matrix[:, 2:])
            assert canvas.x0 <= x.min() <= x.max() <= canvas.x0 + canvas.width  # else the jaw would be mirrored
            overlaps.append(((y < canvas.y0) | (y > canvas.y0 + canvas.height)).mean())
    assert np.mean(np.array(overlaps) > 0) < 0.03  # only the tallest sensors on leaning jaws are higher than the canvas
