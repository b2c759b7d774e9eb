import numpy as np
import pytest
from implant_scenes import fitted

from implantdet.assembly.candidates import (
    ENLARGED,
    LENGTH_STD,
    NEW,
    PER_PART,
    WHOLE,
    Parts,
    end_to_end,
    enumerate_candidates,
    prefer_axis,
    prefer_known_lengths,
    standing_apart,
)

MISSING = np.array([3.0, 3.0, 3.0, 0.0])
ASPECTS = np.ones(3)


def parts(boxes, slots, alone=12.0):
    shape = np.array(boxes, float).reshape(-1, 4), np.array(slots, np.intp)
    return Parts(*shape, np.broadcast_to(np.array(alone, float), len(slots)))


def column(x, y=0.0):
    """Boxes of an upright implant's thirds."""
    return [[x, y + 30 * k, x + 30, y + 30 * k + 30] for k in range(3)]


def enumerated(layout, missing=MISSING):
    found = enumerate_candidates(layout, fitted().state_.model, missing)
    return {tuple(row): cost for row, cost in zip(found.members.tolist(), found.costs, strict=True)}


def test_one_implant_gives_singles_pairs_and_the_triple():
    found = enumerated(parts(column(0), [0, 1, 2]))
    assert set(found) == {
        (0, -1, -1, -1),
        (-1, 1, -1, -1),
        (-1, -1, 2, -1),
        (0, 1, -1, -1),
        (-1, 1, 2, -1),
        (0, -1, 2, -1),
        (0, 1, 2, -1),
    }
    assert found[0, 1, 2, -1] < found[0, 1, -1, -1] < found[0, -1, -1, -1]
    assert found[0, -1, -1, -1] - found[0, 1, -1, -1] < 3  # one more third is missing, and a fit that is not perfect


def test_thirds_out_of_reach_are_not_joined():
    boxes = [column(0)[0], column(200)[1], column(0, y=500)[2]]
    assert set(enumerated(parts(boxes, [0, 1, 2]))) == {(0, -1, -1, -1), (-1, 1, -1, -1), (-1, -1, 2, -1)}


def test_candidates_that_cost_more_than_their_parts_alone_are_dropped():
    assert enumerated(parts(column(0), [0, 1, 2], alone=0.1)) == {}


def test_an_empty_image_has_no_candidates():
    assert enumerated(parts([], [])) == {}


def test_whole_implants_attract_their_thirds():
    whole, away = [0, 0, 30, 90], [200, 0, 230, 90]
    missing = np.full(4, 3.0)
    found = enumerated(parts([*column(0), whole, away], [0, 1, 2, 3, 3]), missing)
    assert found[0, 1, 2, 3] < found[0, 1, 2, -1]
    assert (0, 1, 2, 4) not in found
    assert found[-1, -1, -1, 4] == found[-1, -1, -1, 3] == NEW  # too small, perhaps, for its thirds to be seen


@pytest.mark.parametrize("seen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_thirds_that_are_too_weak_for_an_implant_of_their_own_may_belong_to_a_whole_one(seen):
    boxes = [*(column(0)[k] for k in seen), [0, 0, 30, 90]]
    row = [seen.index(k) if k in seen else -1 for k in range(3)]
    loose, rooted = (*row, -1), (*row, len(seen))

    def found(alone):
        return enumerated(parts(boxes, [*seen, WHOLE], [*[alone] * len(seen), 9.0]), np.full(4, 3.0))

    costs = found(50.0)
    # Together, against the whole implant with its thirds beside it; and the thirds, against nothing.
    together, by_themselves = (costs[rooted] - NEW) / len(seen), costs[loose] / len(seen)
    assert together + 1e-3 < by_themselves
    assert {rooted, loose} & set(found(together - 1e-3)) == set()
    assert {rooted, loose} & set(found(together + 1e-3)) == {rooted}
    assert {rooted, loose} <= set(found(by_themselves + 1e-3))


def test_a_whole_implant_can_do_without_the_thirds_that_it_would_gain_by():
    """However many sets of them there are: they may be another one's."""
    thirds = [np.add(box, k) for box in column(0) for k in (0, 3)]
    layout = parts([*thirds, [0, 0, 30, 90]], [0, 0, 1, 1, 2, 2, WHOLE], alone=50.0)
    found = enumerated(layout, np.full(4, 3.0))
    assert sum(row[WHOLE] == 6 for row in found) > PER_PART
    assert found[-1, -1, -1, 6] == NEW
    too_weak = parts([[0, 0, 30, 90]], [WHOLE], alone=NEW - 0.1)
    assert enumerated(too_weak, np.full(4, 3.0)) == {}


def test_the_number_of_candidates_is_bounded():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (120, 2))
    crowd = parts(np.hstack([corner, corner + 30]), rng.integers(0, 3, 120))
    found = enumerate_candidates(crowd, fitted().state_.model, MISSING)
    assert len(found.costs) <= PER_PART * 120
    assert np.bincount(found.members[found.members >= 0]).min() > 0


def test_tilted_candidates_are_charged():
    layout = parts([*column(0), *column(24)], [0, 1, 2, 0, 1, 2])
    model = fitted().state_.model
    found = enumerate_candidates(layout, model, MISSING)
    charged = prefer_axis(found, layout, model, np.array([0.0, 1.0]))
    extra = dict(zip(map(tuple, found.members.tolist()), charged.costs - found.costs, strict=True))
    assert extra[0, 1, 2, -1] == pytest.approx(0)
    assert extra[0, -1, -1, -1] == 0
    skewed = [cost for row, cost in extra.items() if row[0] == 0 and row[2] == 5]
    assert skewed
    assert min(skewed) > 1


def charges(layout, mm_per_pixel, longest=16.0, missing=MISSING):
    found = enumerate_candidates(layout, fitted().state_.model, missing)
    charged = prefer_known_lengths(found, layout, mm_per_pixel, longest)
    return dict(zip(map(tuple, found.members.tolist()), charged.costs - found.costs, strict=True))


def test_lengths_that_no_product_line_has_are_charged_by_their_logarithm():
    layout = parts(column(0), [0, 1, 2])  # thirds of 30 pixels: 90 in all
    assert set(charges(layout, 16 * ENLARGED / 90).values()) == {0.0}
    # Student's t of ten degrees of freedom, one standard deviation beyond
    expected = 5.5 * np.log(1 + 1 / 10)
    for row, charge in charges(layout, 16 * ENLARGED * np.exp(LENGTH_STD) / 90).items():
        assert charge == pytest.approx(expected if sum(part >= 0 for part in row) > 1 else 0.0), row


def test_a_whole_implant_is_charged_for_the_longer_side_of_its_box():
    layout = parts([[0, 0, 30, 200], column(0)[1]], [WHOLE, 1])
    found = charges(layout, [[0.05, 0.0], [0.0, 2 * 16 * ENLARGED / 200]])
    expected = 5.5 * np.log(1 + (np.log(2) / LENGTH_STD) ** 2 / 10)
    assert {charge == pytest.approx(expected) for row, charge in found.items() if row[WHOLE] == 0} == {True}
    assert found[-1, 1, -1, -1] == 0
    # Down the box's longer side, a pixel has 0.5 mm: half of it down, the others across.
    turned = charges(layout, [[0.05, 0.3], [0.0, 0.4]])
    expected = 5.5 * np.log(1 + (np.log(200 * 0.5 / (16 * ENLARGED)) / LENGTH_STD) ** 2 / 10)
    assert turned[-1, -1, -1, 0] == pytest.approx(expected)


def test_thirds_that_are_longer_than_their_whole_implant_are_charged_for_their_own_length():
    layout = parts([*column(0), [0, 20, 30, 70]], [0, 1, 2, WHOLE])
    found = charges(layout, 2 * 16 * ENLARGED / 90)
    assert found[0, 1, 2, 3] == found[0, 1, 2, -1] > found[-1, -1, -1, 3] > 0


def test_lengths_are_measured_in_millimetres_where_pixels_are_not_square():
    upright, lying = column(0), [[30 * k, 0, 30 * k + 30, 30] for k in range(3)]
    scale = [[0.0, 0.5], [0.1, 0.0]]  # 0.5 mm down the image, 0.1 mm across it, in a frame turned by 90°
    assert charges(parts(upright, [0, 1, 2]), scale)[0, 1, 2, -1] > 1  # 45 mm
    assert charges(parts(lying, [0, 1, 2]), scale)[0, 1, 2, -1] == 0  # 9 mm


def test_direction_from_first_to_last_third():
    layout = parts(column(0), [0, 1, 2])
    rows = np.array([[0, 1, 2, -1], [-1, 1, 2, -1], [0, -1, 2, -1], [0, 1, -1, -1]])
    assert end_to_end(rows, layout).tolist() == [[0, 1]] * 4


def test_unexplained_whole_implants_stay_where_nothing_else_is():
    # Three whole implants: one has a third already, one covers that third's implant again, one stands alone.
    boxes = np.array([[0.0, 0, 20, 20], [0.0, 0, 20, 60], [1.0, 0, 21, 60], [100.0, 0, 120, 60], [101.0, 0, 121, 60]])
    layout = Parts(boxes, np.array([0, WHOLE, WHOLE, WHOLE, WHOLE]), np.array([9.0, 9.0, 1.0, 0.5, 2.0]))
    members = np.array([[0, -1, -1, 1]])
    # The better of the two that stand alone.
    assert standing_apart(members, np.ones(1), layout, ASPECTS).tolist() == [[0, -1, -1, 1], [-1, -1, -1, 4]]
    nothing = np.empty((0, 4), np.intp)
    assert standing_apart(nothing, np.empty(0), layout, ASPECTS)[:, WHOLE].tolist() == [1, 4]
    empty = Parts(np.empty((0, 4)), np.empty(0, np.intp), np.empty(0))
    assert standing_apart(nothing, np.empty(0), empty, ASPECTS).shape == (0, 4)


def test_of_two_implants_in_one_place_the_better_stays():
    layout = parts([*column(0), *column(5, y=40), *column(100)], [0, 1, 2] * 3)
    # 50 of 90 pixels of the height, and 25 of 30 of the width: less than half.
    rows = np.array([[0, 1, 2, -1], [3, 4, 5, -1], [6, 7, 8, -1]])
    assert len(standing_apart(rows, np.array([1.0, 2.0, 3.0]), layout, ASPECTS)) == 3
    closer = parts([*column(0), *column(5, y=20), *column(100)], [0, 1, 2] * 3)
    assert standing_apart(rows, np.array([1.0, 2.0, 3.0]), closer, ASPECTS).tolist() == rows[[2, 1]].tolist()
    # A small one inside a large one overlaps it little in terms of the larger.
    inside = parts([*column(0), [10, 40, 20, 50]], [0, 1, 2, 1])
    rows = np.array([[0, 1, 2, -1], [-1, 3, -1, -1]])
    assert standing_apart(rows, np.array([2.0, 1.0]), inside, ASPECTS).tolist() == rows[:1].tolist()


def test_a_loose_whole_implant_beside_another_stays():
    layout = Parts(np.array([[0.0, 0, 20, 60], [0.0, 0, 50, 60]]), np.array([WHOLE, WHOLE]), np.array([2.0, 1.0]))
    nothing = np.empty((0, 4), np.intp)
    assert len(standing_apart(nothing, np.empty(0), layout, ASPECTS)) == 2  # IoU 0.4


@pytest.mark.parametrize(
    "aside, beyond, side, is_crown",
    [
        (0, 57, 40, True),
        (0, 63, 40, False),  # higher than a crown
        (27, 40, 40, True),
        (-33, 40, 40, False),  # beside the axis
        (0, -130, 40, False),  # beyond the apex
        (0, 37, 20, True),
        (0, 43, 20, False),  # a crown as small as that would reach down to the implant
    ],
)
@pytest.mark.parametrize("shown", [(0, 1, 2), (0, 2), (1, 2)], ids=str)
def test_a_lone_coronal_third_on_top_of_an_implant_is_its_crown(aside, beyond, side, is_crown, shown):
    """The implant stands upright from y = 100 to 190, in thirds of 30."""
    x, y = 15 + aside, 100 - beyond
    layout = parts([*column(0, y=100), [x - side / 2, y - side / 2, x + side / 2, y + side / 2]], [0, 1, 2, 0])
    members = np.array([[3, -1, -1, -1], [k if k in shown else -1 for k in (0, 1, 2)] + [-1]])
    found = standing_apart(members, np.array([5.0, 5.0]), layout, ASPECTS)
    assert sorted(found[:, 0].tolist()) == sorted([0 if 0 in shown else -1] + ([] if is_crown else [3]))


@pytest.mark.parametrize("gain, is_crown", [(5.0, True), (5.1, False)])
def test_a_surer_lone_third_is_no_crown(gain, is_crown):
    layout = parts([*column(0, y=100), [-5, 40, 35, 80]], [0, 1, 2, 0])
    found = standing_apart(np.array([[3, -1, -1, -1], [0, 1, 2, -1]]), np.array([gain, 5.0]), layout, ASPECTS)
    assert len(found) == (1 if is_crown else 2)


@pytest.mark.parametrize("slots", [(1, None), (2, None), (0, WHOLE)])
def test_other_thirds_and_those_with_a_whole_implant_are_no_crowns(slots):
    slot, whole = slots
    layout = parts([*column(0, y=100), [-5, 40, 35, 80], [-5, 40, 35, 80]], [0, 1, 2, slot, WHOLE])
    lone = np.full(4, -1)
    lone[slot] = 3
    if whole:
        lone[WHOLE] = 4
    found = standing_apart(np.array([lone, [0, 1, 2, -1]]), np.array([5.0, 5.0]), layout, ASPECTS)
    assert lone.tolist() in found.tolist()
