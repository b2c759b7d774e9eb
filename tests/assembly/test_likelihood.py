import numpy as np
import pytest
from implant_scenes import fitted
from scipy.stats import multivariate_t

from implantdet.assembly.likelihood import (
    DEGREES_OF_FREEDOM,
    StudentT,
    link_features,
    whole_features,
)

UPRIGHT = np.array([[[10.0, 0.0, 30.0, 10.0], [10.0, 10.0, 30.0, 20.0], [10.0, 20.0, 30.0, 30.0]]])
ASPECTS = np.full(3, 2.0)  # width 20, length 10


def test_the_cost_is_that_of_scipys_student_t():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3))
    fit = StudentT.fit([samples], min_std=0.0)
    assert fit.mean[0] == pytest.approx(samples.mean(axis=0))
    scale = np.linalg.inv(fit.precision[0])
    assert scale == pytest.approx(np.cov(samples, rowvar=False))
    truth = multivariate_t(fit.mean[0], scale, df=DEGREES_OF_FREEDOM)
    assert fit.cost(samples[:5], 0) == pytest.approx(truth.logpdf(fit.mean[0]) - truth.logpdf(samples[:5]))


def test_each_sample_has_its_own_distribution():
    fit = StudentT.fit([np.array([[0.0], [2.0]]), np.array([[10.0], [14.0]])], min_std=0.0)
    assert fit.mean.tolist() == [[1], [12]]
    assert fit.cost(np.array([[1.0], [12.0]]), np.array([0, 1])) == pytest.approx([0, 0])
    assert (fit.cost(np.array([[1.0], [12.0]]), np.array([1, 0])) > 1).all()


def test_features_of_a_regular_implant_are_zero_but_for_its_aspect():
    found = link_features(UPRIGHT, np.arange(3), ASPECTS)
    # Two spacings, two ratios of lengths, two of widths, the aspect, the offset.
    assert found[0] == pytest.approx([0, 0, 0, 0, 0, 0, np.log(2), 0], abs=1e-9)


def test_features_by_hand():
    boxes = UPRIGHT.copy()
    boxes[0, 1] += [5, 5, 5, 5]  # the middle moves 5 to the right and 5 towards the apex
    found = link_features(boxes, np.arange(3), ASPECTS)[0]
    assert found[:2] == pytest.approx(np.log([1.5, 0.5]))
    assert abs(found[-1]) == pytest.approx(0.5)  # 5 pixels of a length of 10
    pair = link_features(UPRIGHT[:, [0, 2]], np.array([[0, 2]]), ASPECTS)[0]
    assert pair == pytest.approx([0, 0, 0, np.log(2)], abs=1e-9)


def test_the_wrong_order_along_the_axis_is_impossible():
    model = fitted().state_.model
    thirds = np.arange(3)
    assert np.isfinite(model.link_cost(UPRIGHT, thirds)).all()
    assert np.isposinf(model.link_cost(UPRIGHT[:, [1, 0, 2]], thirds)).all()
    assert np.isposinf(model.link_cost(UPRIGHT[:, [0, 0]], np.array([[0, 1]]))).all()


def test_moving_scaling_and_turning_changes_no_feature():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (4, 3, 2)) + np.array([[0, 0], [0, 40], [0, 80]])
    boxes = np.concatenate([corner, corner + rng.uniform(20, 30, (4, 3, 2))], axis=-1)
    turned = np.stack([-boxes[..., 3], boxes[..., 0], -boxes[..., 1], boxes[..., 2]], axis=-1)
    plain = link_features(boxes, np.arange(3), ASPECTS)
    assert np.isfinite(plain).all()
    for changed in (boxes + 17.0, 3.5 * boxes, turned):
        assert link_features(changed, np.arange(3), ASPECTS) == pytest.approx(plain)


def test_features_of_a_whole_implant():
    thirds, whole = np.array([[0.0, 0.0, 10.0, 20.0]]), np.array([[0.0, 5.0, 10.0, 30.0]])
    # 150 shared pixels, of 200 and of 250.
    assert whole_features(thirds, whole)[0] == pytest.approx(np.log([0.75, 0.6]))


def test_tilt_costs_grow_with_the_angle():
    model = fitted().state_.model
    costs = model.tilt_cost(np.radians([0.0, 5.0, 20.0, 90.0]))
    assert costs[0] == 0
    assert (np.diff(costs) > 0).all()
