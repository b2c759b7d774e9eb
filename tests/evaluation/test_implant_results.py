import dataclasses
import json

from implant_outcomes import complete, found, inferred, known, outcome, ranking

from implantdet.evaluation.implant_results import implants_content, implants_of
from implantdet.structures import Assembly, Reading


def content_of(implant):
    (content,) = implants_of(Assembly((implant,), ()))
    return content


def test_an_implant_survives_json():
    coronal, middle, _ = complete(1, 0)
    coronal = dataclasses.replace(coronal, rivals=(Reading("coronal.level", "tissue", 0.25, 7),))
    implant = found(1, [coronal, middle, inferred(1, "apical")], score=0.7)
    content = content_of(implant)
    read = json.loads(json.dumps(content, allow_nan=False))
    assert read["box"] == [50, 10, 70, 70]
    assert read["axis"] == [[60, 10], [60, 70]]
    assert (read["score"], read["length"], read["length_mm"], read["width_mm"], read["tilt"]) == (0.7, 60, 6, 2, 0)
    assert [part["third"] for part in read["parts"]] == ["coronal", "middle", "apical"]
    assert [part["box_std"] for part in read["parts"]] == [None, None, [1, 1, 1, 1]]
    assert read["parts"][0]["readings"] == [{"axis": "coronal.level", "value": "bone", "score": 0.9}]
    assert [part["rivals"] for part in read["parts"]] == [
        [{"axis": "coronal.level", "value": "tissue", "score": 0.25}],
        [],
        [],
    ]
    first = read["ranking"]["systems"][0]
    assert (first["name"], first["probability"], first["rank"]) == ("ITI", 0.9, 1)
    assert first["evidence"][0] == {"axis": "coronal.level", "value": "bone", "score": 0.9, "weight": 1.5}
    assert read["whole"] is None


def test_improbable_lines_are_left_out():
    ranked = ranking(("ITI", 0.99), ("Bego", 0.01), lines=(("ITI BLT", 0.985), ("Bego S", 0.01), ("ITI TL S", 0.005)))
    content = content_of(found(1, complete(1, 0), rank=ranked))
    assert [line["name"] for line in content["ranking"]["lines"]] == ["ITI BLT", "Bego S"]


def test_the_set_and_unknown_are_kept():
    rank = ranking(("ITI", 1.0), system_set=("ITI", "Bego"), unknown=True)
    content = content_of(found(0, complete(0, 0), rank=rank))["ranking"]
    assert (content["system_set"], content["line_set"], content["unknown"]) == (("ITI", "Bego"), None, True)


def test_a_design_that_was_not_read_has_no_fit():
    rank = dataclasses.replace(ranking(("ITI", 1.0)), fit=None)
    content = content_of(found(0, complete(0, 0), rank=rank))["ranking"]
    assert json.loads(json.dumps(content))["fit"] is None


def test_every_image_is_there_with_its_error():
    outcomes = [outcome([found(0, complete(0, 0))], [known(0)], image_id=4), outcome([], [known(0)], image_id=5)]
    content = implants_content("idd_test", outcomes)
    assert content["dataset"] == "idd_test"
    assert [(image["image_id"], image["error"], len(image["implants"])) for image in content["images"]] == [
        (4, 0, 1),
        (5, 1, 0),
    ]


def test_implants_are_numbered_as_one_reads():
    """Row by row from the left, whatever their scores, by which they are listed."""
    placed = [found(k, complete(k, 3 * k), score=score) for k, score in ((2, 0.9), (0, 0.8), (1, 0.7))]
    below = dataclasses.replace(found(3, complete(3, 9)), box=(10, 210, 30, 270))
    listed = implants_of(Assembly((below, *placed), ()))
    assert [implant["number"] for implant in listed] == [4, 3, 1, 2]
    assert [implant["number"] for implant in implants_of(Assembly((below, *placed), ()), 0.75)] == [3, 2, 1, 4]
    assert implants_of(Assembly((), ())) == []


def test_what_no_picture_shows_makes_no_rows():
    """A weak one above both would end the row of the left one at its own end, so that the right one came first."""
    left, right, weak = ((0, 12, 10, 30), (20, 10, 30, 28), (0, 0, 10, 20))
    scored = ((right, 0.9), (left, 0.8), (weak, 0.1))
    listed = [
        dataclasses.replace(found(k, complete(k, 3 * k)), box=box, score=score) for k, (box, score) in enumerate(scored)
    ]
    assert [implant["number"] for implant in implants_of(Assembly(tuple(listed), ()), 0.3)] == [2, 1, 3]
