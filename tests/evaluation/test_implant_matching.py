import pytest
from implant_outcomes import complete, found, known, outcome, part, ranking

from implantdet.evaluation.implant_matching import top_system


def test_pairs_are_one_to_one_and_overlap_by_half():
    twice = [found(0, complete(0, 0)), found(0, complete(0, 3), shift=2.0), found(1, complete(1, 6), shift=15.0)]
    result = outcome(twice, [known(0), known(1)])
    assert result.pairs == {0: 0}  # the first comes first; the third overlaps with an IoU of 5 / 35
    assert [implant.box for implant in result.missed] == [known(1).box]
    assert result.false == [twice[1], twice[2]]


def test_a_faint_rival_that_fits_better_takes_no_implant_from_a_sure_one():
    """As in COCO's AP: the true implant is found by the first of both, and so the other one is false."""
    sure, rival = found(0, complete(0, 0), score=0.95, shift=3.0), found(0, complete(0, 3), score=0.6)
    result = outcome([sure, rival], [known(0)])
    assert result.matched == [(sure, known(0))] and result.false == [rival]


def test_faint_implants_are_not_false_but_count_as_found():
    faint = found(0, complete(0, 0), score=0.2)
    assert outcome([faint], []).false == []
    assert outcome([faint], [known(0)]).matched == [(faint, known(0))]


def test_thirds_know_their_owner_and_their_truth():
    implant = found(0, [part(0, "coronal", 0), part(1, "middle", 1)])
    result = outcome([implant], [known(0), known(1)], [part(1, "apical", 2), part(4, "apical", 3)])
    places = {(third.part.third, third.owner, third.truth) for third in result.thirds}
    assert places == {("coronal", 0, 0), ("middle", 0, 1), ("apical", None, 1), ("apical", None, None)}


def test_thirds_that_are_not_annotated_belong_to_nobody():
    cut = known(0)
    del cut.boxes["apical"]
    thirds = outcome([found(1, complete(1, 0))], [cut, known(1)], [part(0, "apical", 9)]).thirds
    assert {(third.part.third, third.owner, third.truth) for third in thirds} == {
        ("coronal", 0, 1),
        ("middle", 0, 1),
        ("apical", 0, 1),
        ("apical", None, None),
    }


def test_error_by_hand():
    assert outcome([], []).error == 0
    assert outcome([found(0, complete(0, 0))], [known(0)]).error == 0
    shifted = found(0, complete(0, 0), shift=5.0)
    assert outcome([shifted], [known(0)]).error == pytest.approx(1 - 15 / 25)
    assert outcome([shifted], [known(0, "Bego")]).error == pytest.approx(1 + 1 - 15 / 25)
    assert outcome([shifted], [known(0, None)]).error == pytest.approx(1 - 15 / 25)
    assert outcome([found(3, complete(3, 0))], [known(0), known(1)]).error == 3


def test_top_system_is_the_first():
    assert top_system(found(0, complete(0, 0), rank=ranking(("Bicon", 0.6), ("ITI", 0.4)))) == "Bicon"
