"""Shapes of threads and bodies, against hand arithmetic."""

import numpy as np
import pytest
from ray_march import plain_line

from implantdet.phantom.lines import default_lines
from implantdet.phantom.solid import PROFILES, Solid, thread_profile

LINES = {line.title: line for line in default_lines()}


@pytest.mark.parametrize("shape", PROFILES)
def test_profiles_span_one_turn(shape):
    assert sum(PROFILES[shape]) == pytest.approx(1.0)
    assert thread_profile(shape, np.array([0.0, 1.0, -3.0])) == pytest.approx([1, 1, 1])
    assert thread_profile(shape, np.linspace(0, 1, 200)).min() == 0


def test_v_thread_is_symmetric_and_buttress_leans():
    phase = np.linspace(0, 0.5, 50)
    assert thread_profile("v_shaped", phase) == pytest.approx(thread_profile("v_shaped", -phase))
    # the steep flank of a buttress faces the apex: just below the crest there is less metal than just above it
    assert thread_profile("buttress", np.array([0.2]))[0] < thread_profile("buttress", np.array([-0.2]))[0]
    assert (
        thread_profile("reverse_buttress", np.array([0.2]))[0] > thread_profile("reverse_buttress", np.array([-0.2]))[0]
    )


def test_crest_rises_by_one_pitch_per_turn():
    solid = Solid(plain_line(LINES["ITI BL"], thread=("v_shaped", 1.0, 0.4, 1), thread_from=0.0), 4.0, 10.0)
    z = np.arange(4, 5, 0.001)
    crest = [z[solid.radius(z, np.full_like(z, theta)).argmax()] for theta in (0.0, np.pi / 2)]
    quarter = (crest[1] - crest[0]) % 1.0
    assert quarter == pytest.approx(0.25, abs=0.06)  # right-handed: the crest rises with the angle


def test_taper_takes_its_share_of_the_diameter():
    solid = Solid(plain_line(LINES["ITI BL"], taper=(0.3, 0.5, 1.0)), 4.0, 10.0)
    assert solid.envelope(np.array([0.0, 5.0, 7.5, 10.0])) == pytest.approx([2, 2, 1.7, 1.4])


def test_collar_flares_to_the_platform():
    solid = Solid(plain_line(LINES["ITI BL"], collar=(2.0, 1.2)), 4.0, 10.0)
    assert solid.envelope(np.array([0.0, 2.0])) == pytest.approx([2.4, 2.0])


@pytest.mark.parametrize(("apex", "end"), [("dome", 0.0), ("flat", 1.6), ("cone", 0.5)])
def test_apex_ends_flat_round_or_pointed(apex, end):
    solid = Solid(plain_line(LINES["ITI BL"], apex=(apex, 0.5)), 4.0, 10.0)
    assert solid.radius(np.array([10.0]), np.array([0.3]))[0] == pytest.approx(end, abs=1e-6)
    assert solid.radius(np.array([8.9]), np.array([0.3]))[0] == pytest.approx(2.0)


def test_nothing_beyond_the_ends():
    solid = Solid(LINES["Bicon"], 4.0, 8.0)
    assert (solid.radius(np.array([-0.01, 8.01]), np.zeros(2)) == 0).all()
    assert (solid.bore_radius(np.array([-0.01, 6.0])) == 0).all()


def test_grooves_cut_the_apex_only():
    solid = Solid(plain_line(LINES["ITI BL"], grooves=3), 4.0, 10.0)
    theta = np.linspace(0, 2 * np.pi, 721)
    assert np.ptp(solid.radius(np.full_like(theta, 5.0), theta)) == 0
    apical = solid.radius(np.full_like(theta, 9.0), theta)
    # three flutes; the first straddles theta = 0
    assert np.count_nonzero(np.diff((apical < 1.9).astype(int)) == 1) == 3


def test_hole_shapes():
    round_one = Solid(plain_line(LINES["ITI BL"], hole="round"), 4.0, 10.0)
    width, height, centre = round_one.hole_size
    assert width == height
    assert round_one.hole_half_width(np.array([centre, centre + height + 0.01])) == pytest.approx([width, 0])
    oblong = Solid(plain_line(LINES["ITI BL"], hole="oblong"), 4.0, 10.0)
    assert oblong.hole_size[1] > 1.5 * oblong.hole_size[0]
    assert oblong.hole_size[2] + oblong.hole_size[1] < 10.0


def test_every_line_gives_a_closed_body():
    for line in default_lines():
        for diameter in line.diameters:
            solid = Solid(line, diameter, line.lengths[0])
            middle = solid.table[2:-4]
            assert middle.min() > 0.05 * diameter, line.title
            bore = solid.bore_radius(np.arange(len(solid.table)) * 0.025)
            assert (bore[2:-4] < middle.min(axis=1) + 0.02).all(), line.title
