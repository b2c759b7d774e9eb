from html.parser import HTMLParser

import pytest

from implantdet.report.page import write_page


class Reader(HTMLParser):
    """Texts of cells, what is linked, and whether every element that is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.links, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("href", "src")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


def ranking(**changes):
    evidence = [
        {"axis": "apical.apex", "value": "flat", "score": 0.3, "weight": -0.7},
        {"axis": "system", "value": "ITI", "score": 0.9, "weight": 5.0},
        {"axis": "middle.thread", "value": "v_shaped", "score": 0.8, "weight": 0.5},
        {"axis": "coronal.level", "value": "tissue", "score": 0.97, "weight": 2.0},
    ]
    return {
        "systems": [
            {"name": "ITI", "probability": 0.934, "evidence": evidence},
            {"name": "A & B <i>", "probability": 0.06, "evidence": []},
            {"name": "Bicon", "probability": 0.006, "evidence": []},
        ],
        "lines": [{"name": "ITI TL S", "probability": 0.9}],
        "system_set": ["ITI", "A & B <i>"],
        "line_set": ["ITI TL S"],
        "fit": 1.0,
        "unknown": False,
        **changes,
    }


def implant(number, score=0.87, length=None, inferred=(), **changes):
    parts = [{"third": third, "box_std": [1] * 4 if third in inferred else None} for third in ("coronal", "apical")]
    ranked = ranking(**changes)
    return {"number": number, "score": score, "length_mm": length, "parts": parts, "ranking": ranked}


def page_of(tmp_path, *implants, **image):
    image = {"file_name": "in/a.png", "picture": "a.png", "modality": None, "mm_per_pixel": None, **image}
    left_out = (
        [{"file_name": "in/<c>.png", "reason": "unreadable image: & so on"}] if image.pop("broken", False) else []
    )
    images = [{**image, "implants": list(implants)}]
    content = {"model": "run", "min_score": 0.3, "images": images, "left_out": left_out}
    write_page(tmp_path / "index.html", content)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_every_sure_implant_has_a_row_in_the_order_of_the_picture(tmp_path):
    page = page_of(tmp_path, implant(2), implant(3, score=0.29), implant(1, length=10.04))
    cells = Reader(page).cells
    assert [cells[0], cells[6]] == ["1", "2"] and len(cells) == 12
    assert cells[1] == "ITI 93%A & B <i> 6%set: ITI, A & B <i>"
    assert cells[2] == "ITI TL S 90%set: ITI TL S"
    said = "for coronal level tissue 97%, middle thread v shaped 80%against apical apex flat 30%"
    assert cells[3:6] == [said, "10.0 mm", "87%"]
    assert "2 implants of score 30% or more" in page


def test_what_nobody_knows_is_not_told_as_if_it_were_known(tmp_path):
    unread = {"axis": "system", "value": "ITI", "score": 0.9, "weight": 5.0}
    systems = [{"name": "ITI", "probability": 0.999, "evidence": [unread]}]
    rows = [
        implant(1, unknown=True, system_set=None, line_set=None),
        implant(2, unknown=None),
        implant(3, unknown=None, fit=None, systems=systems),
        {**implant(4, length=9.6, inferred=("apical",)), "ranking": None},
    ]
    cells = Reader(page_of(tmp_path, *rows)).cells
    assert cells[1] == "unknown, of the listed ones most likeITI 93%A & B <i> 6%"
    assert cells[2] == ""  # nobody has looked how right these probabilities are
    assert cells[7].startswith("whether unknown: not judgedITI 93%")
    assert cells[13].startswith("ITI >99%set: ")
    assert cells[15] == "its design could not be read"
    assert cells[18:] == ["4", "", "", "", "about 10 mm", "87%inferred: apical"]


def test_names_of_files_are_text_and_addresses(tmp_path):
    page = page_of(tmp_path, implant(1), file_name='in/<b>"&.png', picture='<b>"& #1.png')
    reader = Reader(page)
    assert reader.links == ["%3Cb%3E%22%26%20%231.png"] * 2
    assert "in/&lt;b&gt;&quot;&amp;.png" in page and '<b>"' not in page


@pytest.mark.parametrize(("scale", "told"), [(1 / 11, "0.0909"), ([[0.1, 0.0], [0.0, 0.2]], "0.1 × 0.2")])
def test_what_is_known_of_a_radiograph_is_told_and_empty_ones_have_no_table(tmp_path, scale, told):
    page = page_of(tmp_path, modality="panoramic", mm_per_pixel=scale)
    assert f"panoramic · {told} mm per pixel · no implants of score 30% or more" in page
    assert "table" not in Reader(page).tags and "http" not in page and "<script" not in page
    assert not list(tmp_path.glob(".*")), "a temporary file"


def test_radiographs_that_could_not_be_looked_at_are_told(tmp_path):
    page = page_of(tmp_path, broken=True)
    assert "in/&lt;c&gt;.png: unreadable image: &amp; so on" in page
    assert "Could not be looked at" not in page_of(tmp_path)


def test_a_design_that_was_read_and_says_nothing_is_not_called_unread(tmp_path):
    silent = {"systems": [{"name": "ITI", "probability": 0.9, "evidence": []}]}
    assert Reader(page_of(tmp_path, implant(1, **silent))).cells[3] == ""
