import numpy as np
import pytest
from detectron2.structures import BoxMode
from implant_scenes import CLASSES, annotation, implant

from implantdet.assembly.gather import meanings
from implantdet.assembly.known import known_implants, readings_per_part
from implantdet.taxonomy import THIRDS, default_taxonomy

MEANINGS = meanings(CLASSES, default_taxonomy())


def record(annotations, size=200):
    return {"width": size, "height": size, "annotations": annotations}


def test_annotations_become_implants():
    annotations = [*implant(7, (50, 100), 0, 90), *implant(9, (120, 100), 0, 90)]
    known = known_implants(record(annotations), MEANINGS)
    assert len(known) == 2
    first = known[0]
    assert set(first.boxes) == {*THIRDS, "system"}
    assert (first.system, first.product_line) == (annotations[-1]["product_line"].split()[0], "Bego S")
    assert first.values["middle.thread"] == "v_shaped"
    assert first.box == first.boxes["system"] == pytest.approx((35, 55, 65, 145))
    assert first.cut == set()


def test_without_a_whole_implant_the_box_is_that_of_the_thirds():
    annotations = [a for a in implant(7, (50, 100), 0, 90) if "." in CLASSES[a["category_id"]]]
    (known,) = known_implants(record(annotations), MEANINGS)
    assert known.system is None
    assert known.box == pytest.approx((35, 55, 65, 145))


def test_boxes_in_coco_form_and_at_the_frame():
    points = np.array([[0.5, 10], [30, 40]])
    one = annotation(1, "middle.body.straight", points)
    one |= {"bbox": [0.5, 10, 29.5, 30], "bbox_mode": BoxMode.XYWH_ABS}
    (known,) = known_implants(record([one]), MEANINGS)
    assert known.boxes["middle"] == (0.5, 10, 30, 40)
    assert known.cut == {"middle"}


def test_where_boxes_of_one_third_differ_theirs_is_the_mean():
    boxes = [[10, 10, 30, 30], [12, 10, 33, 34], [11, 13, 30, 32]]
    names = ("middle.body.straight", "middle.thread.square", "middle.thread.v_shaped")
    same = [annotation(1, name, np.reshape(box, (2, 2))) for name, box in zip(names, boxes, strict=True)]
    for order in ([0, 1, 2], [2, 1, 0]):
        (known,) = known_implants(record([same[k] for k in order]), MEANINGS)
        assert known.boxes["middle"] == pytest.approx((11, 11, 31, 32))


def test_parts_without_an_implant_are_left_out():
    annotations = implant(7, (50, 100), 0, 90)
    del annotations[0]["implant_id"]
    annotations[1]["iscrowd"] = 1
    (known,) = known_implants(record(annotations), MEANINGS)
    assert len(known.values) == 7
    assert known_implants(record([]), MEANINGS) == []


def test_a_whole_implant_without_an_id_is_one_of_its_own():
    one, two = implant(7, (50, 100), 0, 90)[-1], implant(9, (120, 100), 0, 90)
    del one["implant_id"]
    two[-1] |= {"implant_id": 0}
    known = known_implants(record([one, one, *two]), MEANINGS)
    assert [set(each.boxes) for each in known] == [{"system"}, {"system"}, set(THIRDS), {"system"}]


def test_readings_of_an_ordinary_part():
    annotations = [*implant(1, (50, 100), 0, 90), *implant(2, (120, 100), 0, 90)]
    without = [a for a in annotations if not (a["implant_id"] == 2 and "coronal.level" in CLASSES[a["category_id"]])]
    known = known_implants(record(without), MEANINGS)
    assert readings_per_part(known).tolist() == [2.5, 2, 4, 1]
    assert readings_per_part([]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "is_cut"),
    [
        ((250, 100), (299.5, 140), True),
        ((50, 160), (90, 199.5), True),
        ((250, 20), (290, 60), False),
        ((20, 160), (60, 190), False),
    ],
)
def test_the_frame_has_four_sides(low, high, is_cut):
    one = annotation(1, "middle.body.straight", np.array([low, high]))
    record = {"width": 300, "height": 200, "annotations": [one]}
    (known,) = known_implants(record, meanings(CLASSES, default_taxonomy()))
    assert known.cut == ({"middle"} if is_cut else set())
