"""Implants in the image: where their shadows fall and how bright they are."""

import numpy as np
import pytest
from phantom_scenes import implant, patient, view

from implantdet.phantom.render import cast, render
from implantdet.phantom.restorations import add_polygon


def test_shadow_lies_where_the_view_puts_the_implant():
    shadow = cast(implant(x=20.0, y=5.0), view(centre=(20.0, 10.0)))
    rows, columns = np.nonzero(shadow.mask)
    # 0.1 mm per pixel, the middle of the image at (20, 10): the platform at row 150, the apex at row 250
    assert rows.min() + shadow.top == pytest.approx(150, abs=1)
    assert rows.max() + 1 + shadow.top == pytest.approx(250, abs=1)
    assert (columns.min() + columns.max() + 1) / 2 + shadow.left == pytest.approx(200, abs=1.5)


def test_height_runs_from_platform_to_apex():
    shadow = cast(implant(angle=0.3, tilt=0.1), view(lean=0.1))
    inside = shadow.height[shadow.mask]
    assert inside.min() == pytest.approx(0, abs=0.05)
    assert inside.max() == pytest.approx(1, abs=0.05)


def test_out_of_plane_implants_are_foreshortened():
    rows, _ = np.nonzero(cast(implant(tilt=0.25), view()).mask)
    length, edge = 10 * np.cos(0.25), 2.05 * np.sin(0.25)
    # the platform's far rim stands out by all of its radius, the rounded apex by less
    assert length + edge - 0.1 < (np.ptp(rows) + 1) * 0.1 < length + 2 * edge


def test_window_cuts_at_the_image():
    shadow = cast(implant(x=0.0), view(centre=(20.0, 10.0)))
    image, patch = shadow.window((400, 400))
    assert image[1].start == 0
    assert shadow.mask[patch].shape == (image[0].stop - image[0].start, image[1].stop - image[1].start)
    away = cast(implant(x=100.0), view())
    image, patch = away.window((400, 400))
    assert away.mask[patch].size == 0


def test_metal_is_brighter_than_bone_and_crowns_are_brightest():
    scene = patient(implant())
    add_polygon(scene.canvas, [(16, -3), (24, -3), (24, 3), (16, 3)], 8.0)
    radiograph = render(scene, view(), np.random.default_rng(0))
    metal, bone, crown = radiograph.image[200, 195], radiograph.image[200, 100], radiograph.image[100, 200]
    assert bone == pytest.approx(120, abs=6)
    assert bone + 80 < metal < crown
    assert radiograph.hidden[100, 200]
    assert not radiograph.hidden[200, 200]


def test_frame_is_black_and_marked():
    radiograph = render(patient(implant()), view(half=(100, 100)), np.random.default_rng(0))
    assert (radiograph.image[:90] == 0).all()
    assert not radiograph.inside[:95].any()
    assert radiograph.inside[200, 200]


def test_a_patient_without_implants_renders():
    assert render(patient(), view(), np.random.default_rng(0)).shadows == ()
