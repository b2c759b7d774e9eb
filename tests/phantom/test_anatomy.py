"""Bone, teeth, restorations and distractors: what is bright where, in optical depth."""

import numpy as np
import pytest
from phantom_scenes import implant

from implantdet.phantom.bone import bump, draw_jaw, draw_lamina, rise, wave
from implantdet.phantom.canvas import MU, Canvas
from implantdet.phantom.distractors import draw_holder, draw_screw, draw_treated_tooth
from implantdet.phantom.panoramic_bone import Arches, draw_head
from implantdet.phantom.restorations import add_polygon, cover_tooth, restore
from implantdet.phantom.teeth import Tooth


@pytest.fixture
def canvas():
    return Canvas(0.0, -15.0, 40.0, 45.0, 0.15)


def rng(seed=0):
    return np.random.default_rng(seed)


def at(canvas, layer, x, y):
    column, row = np.round(canvas.pixels(np.array([x, y]))).astype(int)
    return float(layer[row, column])


def test_steps_and_bumps():
    values = np.array([-1.0, 0.0, 1.0, 2.0, 5.0], np.float32)
    assert rise(values, 2.0) == pytest.approx([0, 0, 0.5, 1, 1])
    assert bump(values, 1.0)[[1, 2]] == pytest.approx([1, np.exp(-0.5)])


def test_waves_are_smooth():
    x = np.arange(0, 60, 0.1, dtype=np.float32)[None]
    curve = wave(rng(), x, 10.0, 1.0)
    assert curve.shape == x.shape
    assert np.abs(np.diff(curve)).max() < 0.1


@pytest.mark.parametrize("upper", [False, True])
def test_bone_is_denser_than_the_open_space_and_uneven(canvas, upper):
    draw_jaw(canvas, rng(), upper, np.zeros_like(canvas.x))
    air, bone = canvas.tissue[canvas.y[:, 0] < -6], canvas.tissue[(canvas.y[:, 0] > 4) & (canvas.y[:, 0] < 8)]
    assert air.mean() < 0.35
    assert bone.mean() > 0.6
    assert bone.std() > 0.05
    assert canvas.bone.max() == pytest.approx(1, abs=1e-3)
    assert not canvas.bone[canvas.y[:, 0] < -0.2].any()


def test_lamina_dura_is_bright_around_a_dark_gap(canvas):
    canvas.bone[:] = 1
    roots = (np.abs(canvas.x - 20) < 3) & (canvas.y > 0) & (canvas.y < 15)
    draw_lamina(canvas, roots, 0.2)
    row = canvas.tissue[round((7 + 15) / 0.15)]
    assert row.min() < -0.02
    assert row.max() > 0.02
    gap, wall = abs(canvas.x[0, row.argmin()] - 20), abs(canvas.x[0, row.argmax()] - 20)
    assert 2.9 < gap < wall < 4


def test_enamel_is_denser_than_dentine_and_dentine_than_pulp(canvas):
    tooth = Tooth((20.0, 0.0), 0.0, 10.0, 8.0, 13.0, 2, molar=True, wear=0.3, pulp=1.0)
    roots = tooth.draw(canvas, rng())
    # close to the side of the crown the ray runs through enamel alone; chord there is shorter than in the middle
    assert at(canvas, canvas.tissue, 15.8, -4) / 0.3 == pytest.approx(1.1 * 2 * np.sqrt(25 - 4.2**2), rel=0.25)
    assert at(canvas, canvas.tissue, 20.0, -2.0) < at(canvas, canvas.tissue, 22.6, -2.0)
    assert roots[canvas.y[:, 0] > 13.5].sum() == 0
    assert roots.any()
    assert not canvas.dense.any()


@pytest.mark.parametrize(("roots", "apices"), [(1, 1), (2, 2), (3, 3)])
def test_number_of_roots(canvas, roots, apices):
    tooth = Tooth((20.0, 0.0), 0.0, 10.0, 8.0, 13.0, roots, molar=roots > 1, wear=0.0, pulp=0.8)
    covered = tooth.draw(canvas, rng(3))
    row = covered[round((9.5 + 15) / 0.15)].astype(int)
    assert 1 <= np.count_nonzero(np.diff(row) == 1) <= apices
    if roots == 2:
        assert np.count_nonzero(np.diff(row) == 1) == 2


def test_gutta_percha_fills_the_canals(canvas):
    tooth = Tooth((20.0, 0.0), 0.0, 7.0, 9.0, 14.0, 1, molar=False, wear=0.0, pulp=1.0)
    tooth.draw(canvas, rng(), treated=True)
    assert at(canvas, canvas.dense, 20.0, 2.0) > 0.4 * MU["gutta"]


def test_metal_crowns_hide_what_lies_behind(canvas):
    tooth = Tooth((20.0, 0.0), 0.0, 9.0, 8.0, 13.0, 2, molar=True, wear=0.0, pulp=1.0)
    for material in ("alloy", "veneered", "zirconia"):
        canvas.dense[:] = 0
        cover_tooth(canvas, tooth, rng(), material)
        assert at(canvas, canvas.dense, 20.0, -4.0) > 4
        assert at(canvas, canvas.dense, 20.0, 3.0) == 0


def test_polygons_have_their_depth_inside(canvas):
    add_polygon(canvas, [(10, 0), (14, 0), (14, 4), (10, 4)], 3.0)
    assert at(canvas, canvas.dense, 12, 2) == pytest.approx(3.0, abs=0.01)
    assert at(canvas, canvas.dense, 10, 2) == pytest.approx(1.5, abs=0.7)
    assert at(canvas, canvas.dense, 16, 2) == 0
    add_polygon(canvas, [(100, 100), (101, 100), (101, 101)], 3.0)  # beyond the canvas: nothing


@pytest.mark.parametrize("count", [1, 2, 3])
def test_restorations_stand_on_the_implants_only(count):
    for seed in range(25):
        canvas = Canvas(0.0, -15.0, 60.0, 40.0, 0.2)
        implants = [implant(x=20.0 + 9 * i, y=1.0) for i in range(count)]
        screws = restore(canvas, implants, rng(seed))
        assert len(screws) == count
        assert all(0 <= screw <= 1 for screw in screws)
        assert canvas.dense[canvas.y[:, 0] < 1.0].max() > 0.5
        assert canvas.dense[canvas.y[:, 0] > 2.5].max() == 0  # nothing hides the body


def test_splints_join_the_crowns():
    joined = 0
    for seed in range(40):
        canvas = Canvas(0.0, -15.0, 60.0, 40.0, 0.2)
        restore(canvas, [implant(x=20.0, y=1.0), implant(x=31.0, y=1.0)], rng(seed))
        joined += at(canvas, canvas.dense, 25.5, -3.5) > 1 or at(canvas, canvas.dense, 25.5, -2.5) > 1
    assert 8 < joined < 35


def test_distractors_are_dense():
    counts = []
    for seed in range(40):
        canvas = Canvas(0.0, -15.0, 40.0, 45.0, 0.2)
        tooth = Tooth.sample(rng(seed), True, 5, (20.0, 0.0), 0.0)
        draw_treated_tooth(canvas, tooth, rng(seed))
        counts.append(canvas.dense.max() > 0.3)
    assert 0.3 < np.mean(counts) < 0.8  # sound teeth too
    for draw in (draw_screw, draw_holder):
        canvas = Canvas(0.0, -15.0, 40.0, 45.0, 0.2)
        draw(canvas, rng(), 20.0, 0.0)
        assert canvas.dense.max() > 0.2


def test_panoramic_crests_face_each_other():
    arches = Arches(0.0, 20.0, 0.002, 30.0)
    assert (arches.crest(True, 0.0), arches.crest(False, 0.0)) == (-10.0, 10.0)
    (_, y), angle = arches.site(True, 0.0)
    assert y == -10
    assert angle == pytest.approx(np.pi)  # apices of the upper jaw point up


def test_bone_is_sampled_away_from_the_bite_wherever_it_bends():
    """A smile lifts the molars of the lower jaw above the midline's bite."""
    canvas = Canvas(-115.0, -59.0, 230.0, 118.0, 0.6)
    arches = Arches(0.0, 18.0, 0.0045, 30.0)
    for upper in (True, False):
        (x, y), _ = arches.site(upper, 55.0)
        assert y < arches.middle and (y < arches.bite(x)) == upper
        # What lies beyond the crest is 1, what lies between the crests 0.
        beyond = np.broadcast_to(canvas.y < y if upper else canvas.y > y, canvas.tissue.shape)
        canvas.tissue[:] = beyond
        assert arches.bone_depth(canvas, [(x, y)]) == 1


def test_head_has_bone_in_both_jaws():
    canvas = Canvas(-115.0, -59.0, 230.0, 118.0, 0.6)
    arches = Arches(0.0, 20.0, 0.002, 30.0)
    draw_head(canvas, rng(), arches)
    assert at(canvas, canvas.bone, 20.0, 22.0) > 0.9
    assert at(canvas, canvas.bone, 20.0, -20.0) > 0.5
    assert at(canvas, canvas.bone, 0.0, 0.0) == 0
    assert canvas.tissue.min() > 0 or np.percentile(canvas.tissue, 0.5) > -0.1
    assert arches.bone_depth(canvas, [(10.0, 10.0)]) > at(canvas, canvas.tissue, 30.0, 0.0)
