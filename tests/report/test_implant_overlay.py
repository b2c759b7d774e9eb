import numpy as np
import pytest
from PIL import ImageDraw

from implantdet.report.implant_overlay import describe, draw_implants
from implantdet.report.overlay import (
    BACKGROUND,
    COLUMN,
    HEIGHT,
    LINE,
    OTHER_COLOUR,
    TEXT,
)
from implantdet.taxonomy import COLOURS


def candidate(name, probability, *evidence):
    reasons = [{"axis": axis, "value": value, "score": 0.9, "weight": weight} for axis, value, weight in evidence]
    return {"name": name, "probability": probability, "rank": 1, "evidence": reasons}


def part(third, box, std=None):
    return {"third": third, "box": box, "score": 0.9, "box_std": std, "readings": []}


def implant(**changes):
    evidence = (
        ("system", "ITI", 3.0),  # is no reason: what is written names designs
        ("coronal.level", "tissue", 2.0),
        ("apical.apex", "flat", -0.7),
        ("middle.body", "straight", 0.1),
    )
    ranking = {
        "systems": [candidate("ITI", 0.934, *evidence), candidate("Bego", 0.06), candidate("Bicon", 0.006)],
        "lines": [candidate("ITI TL S", 0.9)],
        "line_set": ["ITI TL S"],
        "fit": 1.0,
        "unknown": False,
    }
    parts = [part("coronal", [40, 20, 60, 40]), part("apical", [40, 60, 60, 80], [1, 1, 1, 1])]
    return {
        "number": 7,
        "box": [36, 16, 64, 84],
        "score": 0.87,
        "axis": [[50, 20], [50, 80]],
        "length_mm": 10.04,
        "parts": parts,
        "ranking": ranking,
        **changes,
    }


def test_systems_lines_evidence_and_size_are_told():
    assert describe(implant()) == [
        "ITI 93%, Bego 6%",
        "  ITI TL S 90%",
        "  for: coronal level tissue 90%",
        "  against: apical apex flat 90%",
        "  score 87%, about 10 mm in the image",
        "  inferred: apical",
    ]


def test_an_unknown_implant_is_called_so():
    ranking = implant()["ranking"] | {"unknown": True, "lines": []}
    assert describe(implant(ranking=ranking))[:2] == [
        "unknown, like ITI 93%, Bego 6%",
        "  for: coronal level tissue 90%",
    ]


def test_what_was_not_judged_and_not_calibrated_is_not_claimed():
    ranking = implant()["ranking"]
    assert "  whether unknown: not judged" in describe(implant(ranking=ranking | {"unknown": None}))
    unread = describe(implant(ranking=ranking | {"unknown": None, "fit": None}))
    assert "  its design could not be read" in unread and len(unread) == len(describe(implant())) + 1
    assert not any("ITI TL S" in line for line in describe(implant(ranking=ranking | {"line_set": None})))
    sure = describe(implant(score=0.996, ranking=ranking | {"systems": [candidate("ITI", 1.0)]}))
    assert sure[0] == "ITI >99%" and sure[-2].startswith("  score >99%")


def test_a_length_between_inferred_ends_is_no_measurement():
    parts = [part("coronal", [40, 20, 60, 40]), part("apical", [40, 60, 60, 80])]
    assert "  score 87%, 10.0 mm in the image" in describe(implant(parts=parts))
    middle = [*parts, part("middle", [40, 40, 60, 60], [1, 1, 1, 1])]
    assert "  score 87%, 10.0 mm in the image" in describe(implant(parts=middle))


def test_without_ranking_scale_and_inferred_parts():
    assert describe(implant(ranking=None, length_mm=None, parts=[])) == ["  score 87%"]


def test_as_many_names_are_told_as_fit_but_always_the_first():
    names = [candidate(f"line {k}", 0.2) for k in range(9)]
    assert (
        describe(implant(ranking=implant()["ranking"] | {"lines": names}))[1] == "  line 0 20%, line 1 20%, line 2 20%"
    )
    long = [candidate("Zimmer Biomet Dental Tapered Screw-Vent", 0.61), candidate("ITI", 0.39)]
    ranking = implant()["ranking"] | {"systems": long, "lines": long, "unknown": True}
    assert describe(implant(ranking=ranking))[:2] == [
        "unknown, like Zimmer Biomet Dental Tapered Screw-Vent 61%",
        "  Zimmer Biomet Dental Tapered Screw-Vent 61%",
    ]


def test_long_lines_do_not_run_into_the_edge():
    names = [candidate("W" * 60, 0.61, ("coronal.thread", "reverse_" * 9, 2.0))]
    content = implant(ranking=implant()["ranking"] | {"systems": names, "lines": names})
    picture = np.asarray(draw_implants(np.zeros((HEIGHT, 300), np.uint8), [content], "title"))[2 * LINE :]
    assert (picture[:, -2:] == BACKGROUND).all(), "nothing runs into the edge"


def painted(content):
    picture = np.asarray(draw_implants(np.zeros((HEIGHT, 300), np.uint8), content, "title"))
    return picture[-HEIGHT:, :300]


def share_of_edge(picture, box, colour):
    x0, y0, x1, y1 = box
    edge = np.concatenate([picture[y0, x0:x1], picture[y1, x0:x1], picture[y0:y1, x0], picture[y0:y1, x1]])
    return float((edge == colour).all(axis=-1).mean())


def test_detected_parts_are_solid_and_inferred_ones_dashed():
    picture = painted([implant(axis=None)])
    assert share_of_edge(picture, (40, 20, 60, 40), COLOURS["coronal"]) == 1
    assert share_of_edge(picture, (36, 16, 64, 84), COLOURS["system"]) == 1
    assert 0.4 < share_of_edge(picture, (40, 60, 60, 80), COLOURS["apical"]) < 0.8


def test_the_axis_runs_from_end_to_end():
    rows = np.flatnonzero((painted([implant()])[:, 50] == OTHER_COLOUR).all(axis=-1))
    assert abs(rows.min() - 20) <= 2
    assert abs(rows.max() - 80) <= 2
    assert not (painted([implant(axis=None)]) == OTHER_COLOUR).all(axis=-1).any()


def test_the_key_names_every_colour_even_without_implants():
    picture = np.asarray(draw_implants(np.zeros((HEIGHT, 300), np.uint8), [], "title"))[:-HEIGHT]
    for colour in (*COLOURS.values(), OTHER_COLOUR):
        columns = np.flatnonzero((picture == colour).all(axis=-1).any(axis=0))
        assert len(columns), "a word in this colour"
        assert columns.min() > 100, "right of the title"


@pytest.mark.parametrize("count", [0, 40])
def test_any_number_of_implants_fits(count):
    picture = draw_implants(np.zeros((400, 600), np.uint8), [implant()] * count, "many")
    assert picture.width == 600 * HEIGHT // 400 + COLUMN


def test_the_footer_stands_alone_in_the_last_line():
    for count in (1, 40):
        picture = np.asarray(draw_implants(np.zeros((HEIGHT, 300), np.uint8), [implant()] * count, "many"))
        column = picture[-LINE:, 300:]
        assert (column == TEXT).all(axis=-1).any(), "the footer"
        assert not (column == COLOURS["system"]).all(axis=-1).any(), "a note"


def test_what_is_said_of_many_implants_makes_the_picture_higher_and_numbers_are_those_of_the_file():
    """No implant of a full arch is left without its text."""
    written = []
    many = [implant(number=k + 10, box=[36, 16 + k, 64, 84 + k]) for k in range(1, 16)]
    image = np.zeros((HEIGHT, 300), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        text = ImageDraw.ImageDraw.text

        def write(self, place, said, **how):
            written.append(said)
            text(self, place, said, **how)

        patch.setattr(ImageDraw.ImageDraw, "text", write)
        picture = draw_implants(image, many[:3][::-1], "some")
        assert [said for said in written if said.isdigit()] == ["11", "11", "12", "12", "13", "13"]
        assert picture.height == HEIGHT + 2 * LINE
        written.clear()
        picture = draw_implants(image, many, "many")
    assert picture.height > HEIGHT + 2 * LINE
    assert sum(said.startswith("ITI 93%") for said in written) == 15


def test_boxes_that_leave_the_radiograph_are_cut_at_its_edge():
    image = np.zeros((100, 100), np.uint8)
    beyond = implant(box=[20, -15, 160, 90], parts=[part("coronal", [30, -12, 150, 20], [1, 1, 1, 1])], axis=None)
    without, cut = (np.array(draw_implants(image, found, "title")) for found in ([], [beyond]))
    assert np.array_equal(cut[: 2 * LINE], without[: 2 * LINE])
    assert (cut[2 * LINE :, :-COLUMN] == COLOURS["system"]).all(axis=2).sum() > HEIGHT / 2, "the side that is inside"


def test_notes_stand_in_the_order_of_their_numbers():
    """Which an evaluation gives to implants that are not drawn, too: the drawn ones may come in another order."""
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda _, place, said, **how: written.append(said))
        left, right = implant(number=9, box=[36, 16, 64, 84]), implant(number=4, box=[136, 16, 164, 84])
        draw_implants(np.zeros((HEIGHT, 300), np.uint8), [left, right], "two")
    assert [said for said in written if said.isdigit()] == ["4", "4", "9", "9"]
