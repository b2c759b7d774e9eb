import math

import pytest
from implant_outcomes import complete, found, known, outcome, ranking

from implantdet.evaluation.system_metrics import place, ranking_metrics, system_confusion

SYSTEMS = ("Bego", "Bicon", "ITI", "other")


def pair(truth, *systems, line=None, **kwargs):
    return found(0, complete(0, 0), rank=ranking(*systems, **kwargs)), known(0, truth, line)


def test_ties_count_against_us():
    candidates = ranking(("Bego", 0.4), ("ITI", 0.4), ("Bicon", 0.2)).systems
    assert [place(candidates, name) for name in ("Bego", "ITI", "Bicon")] == [2, 2, 3]
    assert place(candidates, "Nobel") == math.inf


def test_top_accuracies_sets_and_unknown_by_hand():
    four = (("ITI", 0.4), ("Bego", 0.3), ("Bicon", 0.2), ("other", 0.1))
    matched = [
        pair("ITI", *four, system_set=("ITI",)),
        pair("Bicon", *four, system_set=("ITI", "Bego")),
        pair("other", *four, system_set=("ITI", "Bego", "Bicon", "other"), unknown=True),
        pair("Bego", ("ITI", 0.5), ("Bego", 0.5), unknown=None),  # a tie, without a set, and not judged
        pair(None, *four, system_set=("ITI",)),
    ]
    result = ranking_metrics(matched)["systems"]
    assert result == {
        "num_implants": 4,
        "top1": pytest.approx(1 / 4),
        "top3": pytest.approx(3 / 4),
        "coverage": pytest.approx(2 / 3),
        "coverage_of": {"Bicon": 0.0, "ITI": 1.0, "other": 1.0},
        "mean_size": pytest.approx(7 / 3),
        "unknown": pytest.approx(1 / 3),
    }


def test_patients_count_alike_in_the_coverage():
    right, wrong = (pair(truth, ("ITI", 1.0), system_set=("ITI",)) for truth in ("ITI", "Bego"))
    result = ranking_metrics([right, right, wrong, right], ["a", "a", "a", "b"])["systems"]
    assert result["coverage"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["coverage_of"] == {"Bego": 0, "ITI": 1}
    assert result["top1"] == pytest.approx(3 / 4)  # of implants


def test_product_lines_are_measured_alike():
    lines = (("ITI BL", 0.6), ("ITI TE", 0.3))
    matched = [
        pair("ITI", ("ITI", 1.0), line="ITI BL", lines=lines, line_set=("ITI BL",)),
        pair("ITI", ("ITI", 1.0), line="ITI TE", lines=lines, line_set=("ITI BL",)),
        pair("ITI", ("ITI", 1.0), lines=lines, line_set=("ITI BL",)),
    ]
    result = ranking_metrics(matched)["lines"]
    assert (result["num_implants"], result["top1"], result["top3"], result["coverage"]) == (2, 0.5, 1.0, 0.5)


def test_nothing_found_is_nan():
    result = ranking_metrics([])["systems"]
    assert result.pop("num_implants") == 0
    assert result.pop("coverage_of") == {}
    assert all(math.isnan(value) for value in result.values())


def test_confusion_with_background_by_hand():
    bego = ranking(("Bego", 0.7), ("ITI", 0.3))
    right = outcome([found(0, complete(0, 0)), found(1, complete(1, 3), rank=bego)], [known(0), known(1)])
    missed = outcome([found(3, complete(3, 0))], [known(0, "Bicon")])
    faint = outcome([found(0, complete(0, 0), score=0.4), found(4, complete(4, 3), score=0.4)], [known(0)])
    unnamed = outcome([found(0, complete(0, 0))], [known(0, None), known(1, None)])
    result = system_confusion([right, missed, faint, unnamed], SYSTEMS)
    assert result["labels"] == [*SYSTEMS, "background"]
    assert result["confusion"] == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],  # the Bicon that was missed
        [1, 0, 1, 0, 1],  # taken for Bego, right, too faint
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],  # the ITI that is not there
    ]


def test_confusion_of_nothing():
    assert system_confusion([], SYSTEMS)["confusion"] == [[0] * 5] * 5
