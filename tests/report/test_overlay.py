import re

import numpy as np
import pytest

from implantdet.report import overlay
from implantdet.report.overlay import (
    BACKGROUND,
    COLUMN,
    HEIGHT,
    INDENT,
    LINE,
    OTHER_COLOUR,
    TEXT,
    Detection,
    detections_of,
    draw_panel,
    side_by_side,
)
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
    annotations = [
        {"category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5, "implant_id": 3},
        {"category_id": 9, "bbox": [0, 0, 2, 2]},
    ]
    implant, caries = detections_of(annotations, categories)
    assert implant == Detection((1, 2, 4, 6), "ITI", "system", 0.5, 3)
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


def written(monkeypatch, detections):
    """The notes of a panel: box and text of each."""
    notes = []
    monkeypatch.setattr(overlay, "write_notes", lambda panel, scale, found: notes.extend(found))
    draw_panel(np.zeros((400, 600), np.uint8), detections, "")
    return [(note.box, [line.text for line in note.lines]) for note in notes]


def test_an_implant_has_one_note_and_other_boxes_one_each(monkeypatch):
    whole, apical = (10, 10, 30, 100), (12, 70, 28, 100)
    detections = [
        Detection(apical, "apical.apex.dome", "apical", implant_id=1),
        Detection((12, 10, 28, 40), "coronal.level.bone", "coronal", implant_id=1),
        Detection((12, 10, 28, 40), "coronal.thread.none", "coronal", implant_id=1),
        Detection(whole, "ITI", "system", implant_id=1),
        Detection(apical, "apical.apex.flat", "apical", implant_id=2),  # of another, at the same place
        Detection((200, 200, 220, 220), "caries", ""),
    ]
    assert sorted(written(monkeypatch, detections)) == [
        (whole, ["ITI", "coronal: level bone, thread none", "apical: apex dome"]),
        (apical, ["apical: apex flat"]),
        ((200, 200, 220, 220), ["caries"]),
    ]


def test_numbers_stand_at_their_boxes_and_at_their_notes():
    image = np.zeros((HEIGHT, 300), np.uint8)
    panel = np.asarray(draw_panel(image, [Detection((10, 20, 30, 60), "ITI", "system")], ""))
    number = (panel[2 * LINE :] == TEXT).all(-1)
    rows, columns = np.nonzero(number[:, :300])
    assert 30 < columns.min() <= columns.max() < 60, "right of the box"
    assert 25 < rows.min() <= rows.max() < 55, "half way down"
    assert number[:, 300 : 300 + INDENT].any()
    assert not number[:, 300 + INDENT :].any()


def test_many_notes_are_written_smaller():
    """Eight implants of five lines fit: forty lines of 20 pixels would not."""
    boxes = [(10 * i, 10 * k, 10 * i + 5, 10 * k + 9) for i in range(8) for k in range(5)]
    detections = [Detection(box, f"line {k}", "", implant_id=k // 5) for k, box in enumerate(boxes)]
    panel = np.asarray(draw_panel(np.zeros((400, 600), np.uint8), detections, ""))
    assert not (panel[-LINE:, -COLUMN:] == TEXT).all(-1).any()
    rows = np.flatnonzero((panel[:, -COLUMN:] == OTHER_COLOUR).all(-1).any(1))
    assert np.count_nonzero(np.diff(rows) > 1) + 1 >= 8


@pytest.mark.parametrize("count", [0, 1, 200])
def test_any_number_of_detections_fits(count):
    detections = [part("apical.apex.dome", (3 * i, 2 * i, 3 * i + 2, 2 * i + 9)) for i in range(count)]
    panel = np.asarray(draw_panel(np.zeros((400, 600), np.uint8), detections, "many"))
    assert (len(panel) > HEIGHT + 2 * LINE) == (count == 200), "higher if the notes need it"
    assert (panel[-LINE:] == BACKGROUND).all() if count == 200 else True, "and none is cut off"


def test_panels_stand_side_by_side():
    panels = [draw_panel(np.full((HEIGHT, 50), value, np.uint8), [], "") for value in (10, 200)]
    picture = np.asarray(side_by_side(panels))
    assert picture.shape == (panels[0].height, 2 * (50 + COLUMN), 3)
    assert picture[-1, 0, 0] == 10
    assert picture[-1, 50 + COLUMN, 0] == 200


def test_long_lines_are_shortened_and_keep_their_score():
    font = overlay.font(15)
    assert overlay._shortened("ITI 93%", font, COLUMN) == "ITI 93%"
    long = "unknown, like Zimmer Biomet Dental Tapered Screw-Vent 61%"
    shortened = overlay._shortened(long, font, COLUMN - INDENT)
    assert re.fullmatch(r"unknown, like Zimmer Biomet .*… 61%", shortened)
    assert COLUMN - INDENT - 25 < font.getlength(shortened) <= COLUMN - INDENT
