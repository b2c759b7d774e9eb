import numpy as np
import pytest

from implantdet.report.overlay import COLUMN, HEIGHT, Detection, detections_of, draw_panel, side_by_side
from implantdet.taxonomy import COLOURS


def part(name, box=(10, 20, 30, 60), score=0.9):
    return Detection(box, name, name.split(".")[0], score)


def count_pixels(panel, colour):
    return int((np.asarray(panel) == colour).all(-1).sum())


def test_labels_name_axis_value_and_score():
    assert part("coronal.thread.reverse_buttress", score=0.876).label == "thread reverse buttress 88%"
    assert Detection((0, 0, 1, 1), "Bego", "system").label == "Bego"


def test_boxes_from_coco_records():
    categories = [{"id": 7, "name": "ITI", "supercategory": "system"}, {"id": 9, "name": "caries"}]
    annotations = [{"category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}, {"category_id": 9, "bbox": [0, 0, 2, 2]}]
    implant, caries = detections_of(annotations, categories)
    assert implant == Detection((1, 2, 4, 6), "ITI", "system", 0.5)
    assert caries == Detection((0, 0, 2, 2), "caries", "", None)


def test_the_box_is_drawn_where_it_lies():
    # An image of HEIGHT/4 is enlarged four times; its box lands at four times its corners, below the title.
    panel = draw_panel(np.zeros((HEIGHT // 4, 100), np.uint8), [part("middle.body.straight")], "")
    picture = np.asarray(panel)[panel.height - HEIGHT :, : 4 * 100]
    rows, columns = np.nonzero((picture[:, : 4 * 30 + 1] == COLOURS["middle"]).all(-1))
    assert (columns.min(), rows.min()) == (4 * 10, 4 * 20)
    assert (columns.max(), rows.max()) == (4 * 30, 4 * 60)
    assert panel.size == (4 * 100 + COLUMN, panel.height)


def test_coincident_boxes_of_one_third_are_drawn_once():
    image = np.zeros((HEIGHT, 300), np.uint8)
    one = draw_panel(image, [part("middle.body.straight")], "")
    two = draw_panel(image, [part("middle.body.straight"), part("middle.thread.square", (10, 20, 30, 61))], "")
    inside = (0, 0, 300, one.height)
    boxes = [np.asarray(panel.crop(inside)) == COLOURS["middle"] for panel in (one, two)]
    assert (boxes[0][: 20 + 60] == boxes[1][: 20 + 60]).all()
    assert count_pixels(two, COLOURS["middle"]) > count_pixels(one, COLOURS["middle"])  # a second line of text


@pytest.mark.parametrize("count", [0, 1, 200])
def test_any_number_of_detections_fits(count):
    detections = [part("apical.apex.dome", (3 * i, 2 * i, 3 * i + 2, 2 * i + 9)) for i in range(count)]
    assert draw_panel(np.zeros((400, 600), np.uint8), detections, "many").height < HEIGHT + 100


def test_panels_stand_side_by_side():
    panels = [draw_panel(np.full((HEIGHT, 50), value, np.uint8), [], "") for value in (10, 200)]
    picture = np.asarray(side_by_side(panels))
    assert picture.shape == (panels[0].height, 2 * (50 + COLUMN), 3)
    assert picture[-1, 0, 0] == 10
    assert picture[-1, 50 + COLUMN, 0] == 200
