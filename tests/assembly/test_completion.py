from functools import cache

import numpy as np
import pytest
from implant_scenes import fitted, scenes

from implantdet.assembly.completion import WHOLE_ALONE, Frame, _spline, complete
from implantdet.assembly.fitting import fit_geometry
from implantdet.assembly.geometry import centres, oriented_size, sizes, union
from implantdet.assembly.known import known_implants
from implantdet.assembly.likelihood import PATTERNS, directions
from implantdet.taxonomy import THIRDS


def triples(num_images, seed):
    meanings = fitted().meanings
    known = [i for record in scenes(num_images, seed) for i in known_implants(record, meanings)]
    return np.array([[implant.boxes[third] for third in THIRDS] for implant in known])


@cache
def learned(box_noise=0.0):
    known = [known_implants(record, fitted().meanings) for record in scenes(100, seed=1)]
    return fit_geometry(known, box_noise)


def predict(boxes, pattern, direction):
    model, regressions = learned()
    found = complete(boxes[None, list(pattern)], pattern, direction[None], model.aspects, regressions)
    return {third: (box[0], std[0]) for third, (box, std) in found.items()}


def test_the_spline_is_linear_through_two_and_constant_through_one():
    assert _spline((0, 2), 1) == pytest.approx([0.5, 0.5])
    assert _spline((0, 1), 2) == pytest.approx([-1, 2])
    assert _spline((1,), 2) == pytest.approx([1])


def test_the_width_of_a_missing_third_goes_on_as_that_of_the_others():
    """Its logarithm follows the spline: 40 and 32 pixels become 25.6, and between 40 and 25.6 lie 32."""
    upright, aspects = np.array([[0.0, 1.0]]), np.ones(3)
    coronal, middle, apical = ([50 - w / 2, y, 50 + w / 2, y + 40] for w, y in ((40, 0), (32, 40), (25.6, 80)))
    for boxes, pattern, missing, width in (
        ([coronal, middle], (0, 1), 2, 25.6),
        ([coronal, apical], (0, 2), 1, 32.0),
        ([middle, apical], (1, 2), 0, 40.0),
    ):
        assert Frame.of(np.array([boxes]), pattern, missing, upright, aspects).width == pytest.approx([width], rel=0.01)


@pytest.mark.parametrize("pattern", PATTERNS[3:6])
def test_the_missing_third_of_unseen_implants_lies_where_it_is_predicted(pattern):
    (missing,) = {0, 1, 2} - set(pattern)
    boxes = triples(60, seed=5)
    predicted = [predict(implant, pattern, directions(implant[None])[0])[missing] for implant in boxes]
    found, std = (np.array(arrays) for arrays in zip(*predicted, strict=True))
    side = sizes(boxes[:, missing]).mean()
    error = found - boxes[:, missing]
    assert np.abs(error).mean() < 0.1 * side
    # Of x and of y, the means over both edges.
    assert std.mean(axis=0)[:2] == pytest.approx(np.sqrt((error**2).mean(axis=0).reshape(2, 2).mean(axis=0)), rel=0.3)


@pytest.mark.parametrize(
    ("pattern", "missing"), [((0, 2), 1), ((0, 1), 2), ((0,), 2), ((1,), 0), ((2,), 0), (WHOLE_ALONE, 0)]
)
def test_deviations_are_those_from_the_annotated_box(pattern, missing):
    """What is there was detected with an error; the missing third is where it is.

    A direction that it does not show itself is that of others, which lean otherwise.
    """
    noise, rng = 0.08, np.random.default_rng(0)
    model, regressions = learned(noise)
    boxes = triples(200, seed=5)
    known = np.array([[union(b)] for b in boxes]) if pattern == WHOLE_ALONE else boxes[:, pattern]
    side = sizes(known).mean(axis=(1, 2))[:, None, None]
    known = known + noise * side * rng.standard_normal(known.shape)
    u = directions(known if len(pattern) > 1 else boxes)
    if len(pattern) == 1:
        cos, sin = (f(rng.normal(0, model.tilt_std, len(u))) for f in (np.cos, np.sin))
        u = np.stack([u[:, 0] * cos - u[:, 1] * sin, u[:, 0] * sin + u[:, 1] * cos], axis=1)
    found, std = complete(known, pattern, u, model.aspects, regressions)[missing]
    assert np.sqrt(np.mean(((found - boxes[:, missing]) / std) ** 2)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("pattern", PATTERNS[:3])
def test_two_thirds_are_predicted_from_one_and_its_direction(pattern):
    boxes = triples(60, seed=5)
    u = directions(boxes)
    for implant, direction in zip(boxes, u, strict=True):
        found = predict(implant, pattern, direction)
        assert set(found) == {0, 1, 2} - set(pattern)
        side = sizes(implant).mean()
        for missing, (box, _) in found.items():
            assert np.hypot(*(centres(box) - centres(implant[missing]))) < 0.6 * side


def test_all_thirds_are_predicted_from_the_whole_implant():
    boxes = triples(60, seed=5)
    errors = []
    for implant, direction in zip(boxes, directions(boxes), strict=True):
        found = predict(np.array([[0.0] * 4] * 3 + [union(implant)]), WHOLE_ALONE, direction)
        assert set(found) == {0, 1, 2}
        errors.append([np.abs(found[k][0] - implant[k]).mean() / sizes(implant[k]).mean() for k in range(3)])
    assert np.mean(errors) < 0.05  # a leaning implant's box says little less than its thirds do


def test_predictions_turn_and_scale_with_the_image():
    implant = triples(3, seed=6)[0]
    direction = directions(implant[None])[0]
    box, std = predict(implant, (0, 1), direction)[2]
    turned = np.stack([-implant[:, 3], implant[:, 0], -implant[:, 1], implant[:, 2]], axis=1) * 2.5
    box_turned, std_turned = predict(turned, (0, 1), np.array([-direction[1], direction[0]]))[2]
    assert box_turned == pytest.approx(2.5 * np.array([-box[3], box[0], -box[1], box[2]]))
    assert std_turned == pytest.approx(2.5 * std[[1, 0, 3, 2]])


def test_the_width_of_a_predicted_middle_lies_between_its_neighbours():
    implant = triples(3, seed=7)[1]
    direction = directions(implant[None])[0]
    box, _ = predict(implant, (0, 2), direction)[1]
    _, widths = oriented_size(sizes(np.array([implant[0], box, implant[2]])), direction, 1.0)
    assert widths[2] < widths[1] < widths[0]
