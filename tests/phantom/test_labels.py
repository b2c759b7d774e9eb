"""Ground truth: boxes, masks, millimetres, and what cannot be assessed."""

import cv2
import numpy as np
import pytest
from phantom_scenes import IDS, implant, named, patient, view
from pycocotools import mask as coco_mask

from implantdet.phantom.labels import annotate, outline
from implantdet.phantom.render import render
from implantdet.phantom.restorations import add_polygon

ALL_AXES = {
    "coronal.level",
    "coronal.microthread",
    "coronal.thread",
    "middle.body",
    "middle.thread",
    "apical.groove",
    "apical.hole",
    "apical.body",
    "apical.apex",
}


def shoot(scene, shot):
    radiograph = render(scene, shot, np.random.default_rng(0))
    return radiograph, annotate(radiograph, shot, list(range(len(scene.implants))), IDS)


def axes(annotations):
    return {name.rsplit(".", 1)[0] for name in named(annotations) if "." in name}


def whole(annotations):
    return next(annotation for annotation in annotations if "axis" in annotation)


def test_an_implant_in_full_view_has_every_axis_once():
    _, annotations = shoot(patient(implant()), view())
    names = named(annotations)
    assert names.count("ITI") == 1
    assert len(names) == len(ALL_AXES) + 1
    assert axes(annotations) == ALL_AXES
    assert "coronal.level.bone" in names
    assert "middle.thread.buttress" in names


@pytest.mark.parametrize("mm", [(0.1, 0.1), (0.07, 0.12)])
@pytest.mark.parametrize(("angle", "turn", "upper"), [(0.0, 0.0, False), (0.4, 0.3, False), (-0.2, -0.2, True)])
def test_boxes_are_tight_on_masks(mm, angle, turn, upper):
    radiograph, annotations = shoot(patient(implant("Bicon", angle=angle)), view(mm=mm, turn=turn, upper=upper))
    height, width = radiograph.image.shape
    for annotation in annotations:
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], height, width)))
        rows, columns = np.nonzero(decoded)
        x, y, w, h = annotation["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1
        )
        assert int(decoded.sum()) == pytest.approx(annotation["area"], rel=0.03)


def test_thirds_divide_the_implant():
    _, annotations = shoot(patient(implant(angle=0.2)), view())
    areas = {named([a])[0].split(".")[0]: a["area"] for a in annotations if "axis" not in a}
    assert sum(areas.values()) == pytest.approx(whole(annotations)["area"], rel=0.001)


@pytest.mark.parametrize("tilt", [0.0, 0.2])
@pytest.mark.parametrize("mm", [(0.1, 0.1), (0.07, 0.12)])
def test_millimetres_are_right(mm, tilt):
    shot = view(mm=mm, lean=0.1, turn=0.2)
    radiograph, annotations = shoot(patient(implant(angle=0.3, tilt=tilt)), shot)
    record = whole(annotations)
    ends = np.array(record["axis"])
    assert np.linalg.norm(ends[1] - ends[0]) * record["mm_per_pixel"] == pytest.approx(10 * np.cos(tilt), rel=0.01)
    # The matrix measures the mask too: its area in square millimetres is close to the silhouette's.
    square_mm = record["area"] * abs(np.linalg.det(np.linalg.inv(shot.matrix[:, :2])))
    assert 0.75 * 4.1 * 10 * np.cos(tilt) < square_mm < 1.05 * 4.1 * 10
    assert radiograph.image[tuple(np.round(ends.mean(axis=0)[::-1]).astype(int))] > 180  # metal lies on the axis


def test_upright_implant_is_as_wide_and_as_long_as_its_millimetres():
    _, annotations = shoot(
        patient(implant("ITI TL SP", diameter=4.8, length=12.0)), view(mm=(0.05, 0.05), centre=(20.0, 11.0))
    )
    _, _, w, h = whole(annotations)["bbox"]
    assert w * 0.05 == pytest.approx(6.5, abs=0.1)  # across the shoulder
    assert h * 0.05 == pytest.approx(12.0, abs=0.12)


def test_maxillary_implants_point_up():
    _, annotations = shoot(patient(implant()), view(upper=True))
    coronal, apical = whole(annotations)["axis"]
    assert apical[1] < coronal[1]


def test_threads_under_three_pixels_are_not_assessable():
    # pitch 0.8 mm: 3.2 pixels at 0.25 mm, 2.7 pixels at 0.3 mm
    _, fine = shoot(patient(implant()), view(mm=(0.25, 0.25), size=(160, 160)))
    _, coarse = shoot(patient(implant()), view(mm=(0.3, 0.3), size=(160, 160)))
    assert {"middle.thread", "coronal.thread"} <= axes(fine)
    assert not {"middle.thread", "coronal.thread", "coronal.microthread"} & axes(coarse)
    assert {"middle.body", "apical.apex"} <= axes(coarse)


@pytest.mark.parametrize(
    ("length", "thread"),
    [(6, "none"), (8, "none"), (9, None), (9.5, None), (10, "v_shaped"), (12, "v_shaped")],
)
def test_a_third_in_which_the_thread_just_begins_is_not_assessable(length, thread):
    """That of TL TE begins at 2.4 mm with a pitch of 0.8 mm: 0, 0.3, 0.75, 0.96, 1.2 and 2 turns are coronal."""
    _, annotations = shoot(patient(implant("ITI TL TE", length=float(length))), view())
    found = [name for name in named(annotations) if name.startswith("coronal.thread")]
    assert found == ([f"coronal.thread.{thread}"] if thread else [])
    assert "middle.thread" in axes(annotations)


def test_a_middle_third_without_a_turn_of_thread_is_not_assessable():
    """TL S of 6 mm has a third of a pitch there."""
    _, annotations = shoot(patient(implant("ITI TL S", length=6.0)), view())
    assert "middle.body" in axes(annotations) and "middle.thread" not in axes(annotations)


def test_absent_microthreads_need_the_same_sharpness_as_present_ones():
    for title in ("ITI BL", "Bego RSX"):
        _, sharp = shoot(patient(implant(title)), view(mm=(0.1, 0.1)))
        _, soft = shoot(patient(implant(title)), view(mm=(0.13, 0.13), size=(320, 320)))
        assert "coronal.microthread" in axes(sharp)
        assert "coronal.microthread" not in axes(soft)


@pytest.mark.parametrize(("spin", "seen"), [(0.0, True), (0.5, True), (1.2, False), (np.pi, True), (-1.2, False)])
def test_a_hole_that_faces_away_is_not_assessable(spin, seen):
    _, annotations = shoot(patient(implant("Bego RI", spin=spin)), view())
    assert ("apical.hole" in axes(annotations)) == seen


def test_covered_parts_get_no_annotation():
    scene = patient(implant())
    add_polygon(scene.canvas, [(10, 4), (30, 4), (30, 8.4), (10, 8.4)], 5.0)  # hides the coronal third, y from 5 to 8.3
    _, annotations = shoot(scene, view())
    assert {axis.split(".")[0] for axis in axes(annotations)} == {"middle", "apical"}
    assert whole(annotations)["visible_fraction"] == pytest.approx(0.66, abs=0.04)


def test_parts_beyond_the_frame_get_no_annotation():
    # the middle third runs from 8.3 to 11.7 mm
    for end, thirds in ((9.3, {"coronal"}), (10.7, {"coronal", "middle"})):
        _, annotations = shoot(patient(implant()), view(centre=(20.0, end - 20.0)))
        assert {axis.split(".")[0] for axis in axes(annotations)} == thirds
        _, y, _, h = whole(annotations)["bbox"]
        assert y + h == 400


def test_implants_that_cover_each_other():
    _, annotations = shoot(patient(implant(), implant(x=21.0)), view())
    assert axes(annotations) == set()
    assert [a["implant_id"] for a in annotations] == [0, 1]


def test_an_implant_outside_the_frame_is_no_annotation():
    assert shoot(patient(implant()), view(half=(60, 60), centre=(60.0, 10.0)))[1] == []


def test_outline_of_a_square():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    found = outline(mask, 10, 20)
    assert found["bbox"] == [13, 22, 5, 3]
    assert found["area"] == 15


def test_rasterised_polygons_have_the_box():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = np.zeros((90, 90), np.uint8)
        half_axes = tuple(rng.integers(4, 40, 2).tolist())
        cv2.ellipse(mask, (45, 45), half_axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        found = outline(mask.astype(bool), 0, 0)
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(found["segmentation"], 90, 90)))
        assert outline(drawn.astype(bool), 0, 0)["bbox"] == found["bbox"]


def test_outline_of_one_pixel_is_a_polygon():
    mask = np.zeros((5, 5), bool)
    mask[1, 2] = True
    found = outline(mask, 0, 0)
    assert found["bbox"] == [2, 1, 1, 1]
    assert all(len(polygon) >= 6 for polygon in found["segmentation"])
