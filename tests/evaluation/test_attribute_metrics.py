import math

import numpy as np
import pytest
from implant_outcomes import complete, found, known
from sklearn.metrics import balanced_accuracy_score

from implantdet.assembly.gather import meanings
from implantdet.evaluation.attribute_metrics import NOT_ASSESSABLE, attribute_metrics, axes_of
from implantdet.taxonomy import default_taxonomy

AXES = {"coronal.level": ["bone", "tissue"]}


def test_axes_are_those_of_the_detector():
    classes = ["coronal.level.bone", "screw", "coronal.level.tissue", "apical.apex.dome", "ITI"]
    axes = axes_of(meanings(classes, default_taxonomy()))
    assert axes == {"coronal.level": ["bone", "tissue"], "apical.apex": ["dome"]}


def pair(truth, read):
    """An implant whose collar is truly ``truth`` and was read as ``read``; None where it is not assessable."""
    parts = complete(0, 0, coronal=read) if read else complete(0, 0)[1:]
    return found(0, parts), known(0, coronal_level=truth)


def test_confusion_and_accuracies_by_hand():
    matched = [pair("bone", "bone")] * 3 + [pair("bone", "tissue"), pair("tissue", None), pair(None, "bone")]
    result = attribute_metrics(matched, AXES)["coronal.level"]
    assert result["values"] == ["bone", "tissue", NOT_ASSESSABLE]
    assert result["confusion"] == [[3, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["balanced_accuracy"] == pytest.approx((3 / 4 + 0 + 0) / 3)


def test_not_assessable_and_not_read_is_right():
    result = attribute_metrics([pair(None, None)], AXES)["coronal.level"]
    assert result["confusion"][2][2] == 1
    assert result["accuracy"] == result["balanced_accuracy"] == 1


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    said = [(["bone", "tissue", None][rng.integers(3)], ["bone", "tissue", None][rng.integers(3)]) for _ in range(60)]
    expected = balanced_accuracy_score(*([str(value) for value in values] for values in zip(*said, strict=True)))
    result = attribute_metrics([pair(*values) for values in said], AXES)["coronal.level"]
    assert result["balanced_accuracy"] == pytest.approx(expected)


def test_a_value_that_is_read_and_never_true_is_no_class():
    result = attribute_metrics([pair("bone", "bone"), pair("bone", "tissue")], AXES)["coronal.level"]
    assert result["balanced_accuracy"] == pytest.approx(0.5)


def test_without_implants():
    result = attribute_metrics([], AXES)["coronal.level"]
    assert result["confusion"] == [[0, 0, 0]] * 3
    assert math.isnan(result["accuracy"])
    assert math.isnan(result["balanced_accuracy"])
