import math

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from implantdet.data.checks import (
    MEASURES,
    OVERHANG,
    annotation_fault,
    box_fault,
    escapes,
    image_fault,
    mask_area,
    run_lengths,
    segmentation_fault,
)

FRAME = (80, 60)  # width, height
IMAGE = {"width": 80, "height": 60}


@pytest.mark.parametrize("name", ["a.png", "deep/er/a.png", "..a.png", "a..b/c", "ü/ж.png", "a b.jpg"])
def test_paths_below_a_folder(name):
    assert escapes(name) is None


@pytest.mark.parametrize(
    "name", ["/a.png", "C:/a.png", "C:\\a.png", "\\\\server\\a", "\\a", "../a", "b/../../a", "b\\..\\a"]
)
def test_paths_that_leave_their_folder(name):
    assert escapes(name)


@pytest.mark.parametrize("bbox", [[0, 0, 80, 60], [79, 59, 1, 1], [0.5, 0.5, 1e-3, 1e-3], [-1, -1, 82, 62]])
def test_boxes_in_the_frame(bbox):
    assert box_fault(bbox, FRAME, OVERHANG) is None


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        (None, "four finite numbers"),
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, 3, "4"], "four finite numbers"),
        ([1, 2, True, 4], "four finite numbers"),
        ([1, 2, math.inf, 4], "four finite numbers"),
        ([1, 2, 0, 4], "without area"),
        ([1, 2, 3, -4], "without area"),
        ([-1.1, 2, 5, 4], "outside the frame"),
        ([70, 2, 11.1, 4], "outside the frame"),
        ([7, -1.1, 5, 4], "outside the frame"),
        ([7, 57, 5, 4.1], "outside the frame"),
        ([80, 2, 1, 4], "without area inside"),
        ([7, -1, 5, 1], "without area inside"),
    ],
)
def test_boxes_that_are_none(bbox, reason):
    assert reason in box_fault(bbox, FRAME, OVERHANG)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        *(
            ([[1, 1, 9, 1, 9, value]], "a polygon must be 3 or more pairs of finite numbers")
            for value in (True, "9", None, math.nan, math.inf, 10**400)
        ),
        ([], "polygons or a run-length code"),
        ("text", "polygons or a run-length code"),
        ([[1, 1, 5, 1]], "3 or more pairs"),
        ([[1, 1, 5, 1, 5, 5, 1]], "3 or more pairs"),
        ([[1, 1, 5, 1, 5, math.nan]], "finite numbers"),
        ([[1, 1, 5, 1, 9, 1]], "without area"),
        ([[1, 1, 85, 1, 9, 10]], "outside the frame"),
        ({"size": [80, 60], "counts": [4800]}, "differs from the image's [60, 80]"),
        ({"size": [60, 80], "counts": [4800]}, "mask without area"),
        ({"size": [60, 80], "counts": [10, 20]}, "add up to 4800"),
        ({"size": [60, 80], "counts": [4801, -1]}, "add up to 4800"),
        ({"size": [60, 80]}, "cannot be decoded"),
        ({"size": [60, 80], "counts": "~"}, "no character '~'"),
        ({"size": [60, 80], "counts": "0P"}, "ends within a number"),
        ({"size": [60, 80], "counts": "04"}, "add up to 4800"),
        ({"size": [60, 80], "counts": "ж"}, "cannot be decoded"),
        ({"size": [60, 80], "counts": 7}, "cannot be decoded"),
    ],
)
def test_masks_that_are_none(mask, reason):
    assert reason in segmentation_fault(mask, FRAME, OVERHANG)


def test_area_of_a_polygon_by_hand():
    triangle, square = [0, 0, 10, 0, 0, 6], [20, 20, 20, 30, 30, 30, 30, 20]
    assert mask_area([triangle, square], FRAME) == 30 + 100


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_against_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray((rng.random((60, 80)) < rng.uniform(0, 0.6)).astype(np.uint8))
    mask[:, : rng.integers(0, 80)] = rng.integers(0, 2)
    lengths = run_lengths(mask_utils.encode(mask)["counts"])
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    np.testing.assert_array_equal(flat, mask.ravel(order="F"))


def test_area_of_run_lengths_is_their_number_of_pixels():
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[10:30, 5:25] = 1
    mask[12, 9] = 0
    code = mask_utils.encode(mask)
    flat = mask.ravel(order="F")
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1]))).tolist()
    for counts in (code["counts"], code["counts"].decode(), runs):
        assert mask_area({"size": [60, 80], "counts": counts}, FRAME) == 399
        assert segmentation_fault({"size": [60, 80], "counts": counts}, FRAME, 0) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("width", value) for value in (0, -1, 8.0, "8", None, True)),
        ("height", 0),
        *(("patient_id", value) for value in ("", 7, None)),
        ("source_id", 7),
        ("split", ""),
        ("modality", "CT"),
        *(("mm_per_pixel", value) for value in (0, -0.1, math.nan, "0.1")),
        *(("mm_per_pixel_matrix", [[0.1, 0], row]) for row in ([0, 0], [0, math.nan], [0.1], 0.1)),
        ("mm_per_pixel_matrix", 0.1),
    ],
)
def test_image_fields(field, value):
    assert image_fault(IMAGE) is None
    assert f"'{field}'" in image_fault({**IMAGE, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("area", 0),
        ("area", None),
        ("iscrowd", 1),
        ("implant_id", "a"),
        ("implant_id", 1.5),
        ("implant_id", -1),
        ("product_line", 7),
        *(("visible_fraction", value) for value in (-0.1, 1.1, math.nan, "1")),
        *((key, value) for key in MEASURES for value in ("1", math.nan)),
        *(("axis", value) for value in (7, [[1, 2]], [[1, 2], [3]], [[1, 2], [3, math.nan]], "axis")),
        ("segmentation", None),
    ],
)
def test_annotation_fields(field, value):
    annotation = {
        "bbox": [1, 2, 3, 4],
        "area": 12.0,
        "iscrowd": 0,
        "implant_id": 5,
        "product_line": "BLT",
        "visible_fraction": 0.5,
        "axis": [[1, 2], [3.5, 4]],
    }
    assert annotation_fault(annotation, IMAGE) is None
    assert f"'{field}'" in annotation_fault({**annotation, field: value}, IMAGE)
