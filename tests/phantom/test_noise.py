"""Random fields."""

import numpy as np
import pytest

from implantdet.phantom.noise import smooth_noise, trabeculae, web


def correlation(field, lag):
    return np.corrcoef(field[:, :-lag].ravel(), field[:, lag:].ravel())[0, 1]


def test_grain_sets_the_correlation():
    field = smooth_noise(np.random.default_rng(0), (200, 200), (10, 10))
    assert correlation(field, 2) > 0.85
    assert abs(correlation(field, 30)) < 0.15
    assert field.std() == pytest.approx(1, abs=0.25)


def test_web_is_bright_lines_between_zero_and_one():
    field = web(np.random.default_rng(1), (200, 200), (12, 12), 0.3)
    assert field.min() >= 0
    assert field.max() == pytest.approx(1, abs=0.01)
    assert (field > 0.5).mean() < 0.35


def test_trabeculae_have_unit_variance_and_lie_flat():
    field = trabeculae(np.random.default_rng(2), (300, 300), 10, 2.0)
    assert field.mean() == pytest.approx(0, abs=0.05)
    assert field.std() == pytest.approx(1, abs=0.05)
    assert correlation(field, 4) > correlation(field.T, 4)


def test_same_seed_same_field():
    fields = [trabeculae(np.random.default_rng(5), (64, 64), 8, 1.0) for _ in range(2)]
    assert np.array_equal(*fields)
