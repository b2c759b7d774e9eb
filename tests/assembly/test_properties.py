"""Exact properties of the whole second stage, and what must never happen, under hypothesis."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implant_scenes import CLASSES, calibrated, fitted, make_instances, scene

from implantdet.assembly.assembler import METHODS

SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def summary(assembly, change=lambda box: box):
    """All that must not change, and under ``change`` the boxes of implants and parts, and the ends of the axes."""
    told = []
    for found in assembly.implants:
        ranking, ends = found.ranking, [] if found.axis is None else np.hstack([found.axis, found.axis])
        boxes = np.array(
            [found.box, *(part.box for part in found.parts), *ends, *([found.whole.box] if found.whole else ())]
        )
        same = (
            [(p.third, p.inferred, [r[:3] for r in p.readings], [r[:3] for r in p.rivals]) for p in found.parts],
            found.whole and [r[:3] for r in found.whole.readings],
            round(found.score, 6),
            [[(c.name, round(c.probability, 6), c.rank) for c in of] for of in (ranking.systems, ranking.lines)],
            [[sorted((e[:3], round(e[3], 6)) for e in c.evidence) for c in ranking.systems]],
            (ranking.system_set, ranking.line_set, ranking.unknown, ranking.fit and round(ranking.fit, 6)),
        )
        deviations = np.array([p.box_std for p in found.parts if p.inferred]).reshape(-1, 4)
        # An axis is two points: turned, each is a box of no size. Deviations turn as the sides of a box do.
        told.append((same, change(boxes), found.length, found.width, abs(change(deviations) - change(0 * deviations))))
    unexplained = sorted((part.third, part.readings) for part in assembly.unexplained)
    return sorted(told, key=lambda row: (-row[0][2], str(row[0]))), [(t, [r[:3] for r in s]) for t, s in unexplained]


def assert_alike(found, expected, scale=1.0):
    """The same but for rounding; boxes come in single precision."""
    assert [row[0] for row in found[0]] == [row[0] for row in expected[0]]
    assert found[1] == expected[1]
    for row, other in zip(found[0], expected[0], strict=True):
        (_, boxes, length, width, deviations), (_, others, other_length, other_width, other_deviations) = row, other
        np.testing.assert_allclose(boxes, others, atol=2e-3 * max(scale, 1))
        np.testing.assert_allclose(deviations, other_deviations, atol=2e-3 * max(scale, 1))
        assert (length is None) == (other_length is None)
        if length is not None:
            assert (length, width) == pytest.approx((scale * other_length, scale * other_width), rel=1e-4)


def disturbed(seed):
    """Boxes, scores and classes of a scene with noise, misses and false positives; no two numbers are equal."""
    rng = np.random.default_rng(seed)
    record = scene(rng)
    kept = [a for a in record["annotations"] if rng.random() > 0.1]
    boxes = np.array([a["bbox"] for a in kept]) + rng.normal(0, 0.7, (len(kept), 4))
    corner = rng.uniform(0, 400, (4, 2))
    boxes = np.vstack([boxes, np.hstack([corner, corner + rng.uniform(20, 50, (4, 2))])])
    classes = np.array([a["category_id"] for a in kept] + rng.integers(0, len(CLASSES), 4).tolist())
    return boxes, rng.uniform(0.3, 1.0, len(boxes)), classes


LEARNED = pytest.mark.parametrize("learned", [fitted, calibrated])
METHOD = pytest.mark.parametrize("method", METHODS)


@METHOD
@LEARNED
@QUICK
@given(SEEDS)
def test_the_order_of_detections_changes_nothing(learned, method, seed):
    boxes, scores, classes = disturbed(seed)
    mixed = np.random.default_rng(seed).permutation(len(boxes))
    plain = learned(method).explain(make_instances(boxes, scores, classes))
    again = learned(method).explain(make_instances(boxes[mixed], scores[mixed], classes[mixed]))
    assert_alike(summary(again), summary(plain))


@METHOD
@LEARNED
@QUICK
@given(SEEDS, st.floats(0, 500), st.floats(0, 500), st.floats(0.2, 8), st.integers(0, 3))
def test_moving_scaling_and_turning_changes_coordinates_alone(learned, method, seed, dx, dy, scale, turns):
    boxes, scores, classes = disturbed(seed)
    boxes = boxes + 300  # so far from the frame that it cuts nothing
    frame = 1300 * scale + 500

    def change(box):
        box = np.asarray(box) * scale + (dx, dy, dx, dy)
        for _ in range(turns):
            x0, y0, x1, y1 = box.T
            box = np.stack([frame - y1, x0, frame - y0, x1]).T
        return box

    plain = learned(method).explain(make_instances(boxes, scores, classes, (1300, 1300)))
    changed = learned(method).explain(make_instances(change(boxes), scores, classes, (frame, frame)))
    assert_alike(summary(changed), summary(plain, change), scale)


def check(implants):
    used = [r.detection for i in implants for p in (*i.observed, *filter(None, (i.whole,))) for r in p.readings]
    assert len(used) == len(set(used)), "two implants share a detection"
    for found in implants:
        axes = [reading.axis for part in found.observed for reading in part.readings]
        assert len(axes) == len(set(axes)), "two detections of one axis"


NUMBERS = st.one_of(
    st.floats(-50, 700), st.sampled_from([0.0, 10.0, 20.0, 30.0, float("nan"), float("inf"), -float("inf"), 1e30])
)
DETECTION = st.tuples(
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.one_of(st.floats(0, 1), st.sampled_from([float("nan"), 2.0, -1.0])),
    st.integers(0, len(CLASSES) - 1),
)


@METHOD
@LEARNED
@QUICK
@given(
    rows=st.lists(DETECTION, max_size=25),
    copies=st.integers(1, 3),
    scale=st.one_of(st.none(), st.floats(1e-3, 10), st.just(((0.1, 0.0), (0.02, 0.2)))),
)
def test_noise_duplicates_and_nonsense_raise_nothing(learned, method, rows, copies, scale):
    rows = rows * copies
    found = make_instances([r[:4] for r in rows], [r[4] for r in rows], [r[5] for r in rows])
    check(learned(method).assemble(found, scale))


@METHOD
@LEARNED
@QUICK
@given(SEEDS, st.integers(1, 60), st.sampled_from([0, 5, 60, 300]))
def test_crowds_of_any_density_share_no_part(learned, method, seed, count, extent):
    """Adversarial layouts: many thirds of one size, on a lattice or on one spot."""
    rng = np.random.default_rng(seed)
    corner = np.round(rng.uniform(0, extent, (count, 2)) / 10) * 10
    boxes = np.hstack([corner, corner + 30])
    check(learned(method).assemble(make_instances(boxes, np.ones(count), rng.integers(0, len(CLASSES), count))))
