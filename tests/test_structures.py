import dataclasses
import math
import re

import numpy as np
import pytest

from implantdet.structures import Assembly, Implant, Part, Reading, checked_scale

BOX = (10.0, 20.0, 30.0, 50.0)


def part(third="middle", box=BOX, score=0.5, detection=0, **kwargs):
    reading = Reading(f"{third}.body", "straight", score, detection)
    return Part(third, box, score, (reading,), **kwargs)


def implant(*parts, **kwargs):
    return Implant(parts=parts, whole=None, box=BOX, score=0.5, **kwargs)


def test_a_part_is_inferred_if_it_has_a_standard_deviation():
    assert not part().inferred
    assert part(box_std=(1.0, 1.0, 1.0, 1.0)).inferred


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"third": "cervical"}, "third"),
        ({"box": (10.0, 20.0, 9.0, 50.0)}, "x0 <= x1"),
        ({"box": (10.0, float("nan"), 30.0, 50.0)}, "finite"),
        ({"score": float("nan")}, "score"),
        ({"score": 1.1}, "score"),
        ({"readings": part().readings * 2}, "more than one detection of an axis"),
    ],
)
def test_parts_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(part(), **change)


def test_an_implant_has_each_third_once_in_order():
    coronal, middle = part("coronal"), part("middle")
    assert implant(coronal, middle).observed == (coronal, middle)
    for wrong in [(middle, coronal), (middle, middle)]:
        with pytest.raises(ValueError, match="each third once"):
            implant(*wrong)
    with pytest.raises(ValueError, match="found neither"):
        implant()
    with pytest.raises(ValueError, match="expected a part of 'system'"):
        Implant((), middle, BOX, 0.5)


def test_readings_are_those_of_detected_parts():
    inferred = Part("apical", BOX, 0.0, box_std=(1.0, 1.0, 1.0, 1.0))
    found = implant(part("middle"), inferred)
    assert list(found.readings) == ["middle.body"]
    assert found.observed == (part("middle"),)


@pytest.mark.parametrize(
    ("apical", "tilt"),
    [((0, 10), 0), ((-10, 10), 45), ((10, 0), -90), ((-10, 0), 90), ((0, -10), 180)],
)
def test_tilt_is_clockwise_from_apex_down(apical, tilt):
    assert implant(part(), axis=((0.0, 0.0), apical)).tilt == pytest.approx(tilt)


def test_measures():
    found = implant(part(), axis=((0.0, 0.0), (30.0, 40.0)), width=20.0, mm_per_pixel=0.1)
    assert (found.length, found.length_mm, found.width_mm) == (50.0, 5.0, 2.0)
    unknown = implant(part())
    assert (unknown.tilt, unknown.length, unknown.length_mm, unknown.width_mm) == (None,) * 4
    assert implant(part(), axis=((0.0, 0.0), (30.0, 40.0))).length_mm is None


def test_measures_where_pixels_are_not_square():
    """Pixels of 0.1 × 0.2 mm: (30, 40) pixels are (3, 8) mm; the walls are 20 · 50 · 0.02 / √73 apart."""
    found = implant(part(), axis=((0.0, 0.0), (30.0, 40.0)), width=20.0, mm_per_pixel=[[0.1, 0.0], [0.0, 0.2]])
    assert found.length_mm == pytest.approx(math.sqrt(73))
    assert found.width_mm == pytest.approx(20 / math.sqrt(73))
    upright = dataclasses.replace(found, axis=((5.0, 0.0), (5.0, 40.0)))
    assert (upright.length_mm, upright.width_mm) == (pytest.approx(8), pytest.approx(2))
    turned = dataclasses.replace(found, mm_per_pixel=[[0.0, -0.1], [0.1, 0.0]])  # a scale, and a quarter turn
    assert (turned.length_mm, turned.width_mm) == (pytest.approx(5), pytest.approx(2))
    without_axis, no_length = (dataclasses.replace(found, axis=axis) for axis in (None, ((1.0, 1.0), (1.0, 1.0))))
    assert (without_axis.length_mm, without_axis.width_mm) == (None, None)
    assert (no_length.length_mm, no_length.width_mm) == (0, None)


def test_implants_share_no_detection():
    with pytest.raises(ValueError, match="share a detection"):
        Assembly((implant(part(detection=3)), implant(part(detection=3))), ())
    assert len(Assembly((implant(part(detection=3)), implant(part(detection=4))), ()).implants) == 2


def test_structures_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        implant(part()).score = np.nan


@pytest.mark.parametrize(
    "scale", [math.nan, math.inf, 0, -0.1, "0.1", True, [0.1, 0.1], [[1], [2, 3]], [[1, 2], [2, 4]], [[1, 0]]]
)
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match=f"mm_per_pixel: found {re.escape(repr(scale))}, expected a number above 0"):
        checked_scale(scale)
