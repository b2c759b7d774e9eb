import numpy as np
import pytest
from implant_scenes import detections, fitted, implant, is_part

from implantdet.assembly.build import outlines
from implantdet.structures import Part
from implantdet.taxonomy import THIRDS


def third(k, box, score=0.9):
    return Part(THIRDS[k] if k < 3 else "system", tuple(map(float, box)), score)


def built(parts, rows, axis=None, weights=(0.5, 0.5)):
    state = fitted().state_
    learned = state.model.aspects, state.regressions, np.array(weights)
    return outlines(parts, np.array(rows), *learned, axis, (900, 900))


UPRIGHT = [third(k, (0, 30 * k, 30, 30 * k + 30)) for k in range(3)]


def test_a_complete_upright_implant():
    (found,) = built(UPRIGHT, [[0, 1, 2, -1]])
    assert found.box == (0, 0, 30, 90)
    assert found.axis[0] == pytest.approx((15, 0), abs=0.3)
    assert found.axis[1] == pytest.approx((15, 90), abs=0.3)
    assert found.width == pytest.approx(30, rel=0.01)


def test_axis_ends_and_width_of_a_tilted_implant():
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 30, 120, width=36, taper=0.0)}
    (found,) = fitted().assemble(detections(record))
    down = np.array([-np.sin(np.pi / 6), np.cos(np.pi / 6)])
    assert np.array(found.axis) == pytest.approx(np.array([200 - 60 * down, 200 + 60 * down]), abs=0.5)
    assert found.width == pytest.approx(36, rel=0.03)
    assert found.tilt == pytest.approx(30, abs=0.1)


def test_a_missing_third_is_inferred_and_marked():
    (found,) = built(UPRIGHT, [[0, -1, 2, -1]])
    assert [part.inferred for part in found.parts] == [False, True, False]
    middle = found.parts[1]
    assert middle.score == 0
    assert middle.box == pytest.approx((0, 30, 30, 60), abs=4)
    assert min(middle.box_std) > 0


def test_a_third_that_spans_two_does_not_push_the_inferred_one_out_of_the_whole_implant():
    parts = [third(0, (100, 100, 130, 130)), third(1, (100, 120, 130, 190)), third(3, (100, 100, 130, 190))]
    (found,) = built(parts, [[0, 1, -1, 2]])
    assert [part.box for part in found.parts[:2]] == [part.box for part in parts[:2]]
    assert found.parts[2].box == pytest.approx((100, 160, 130, 190), abs=4)
    (alone,) = built(parts[:2], [[0, 1, -1, -1]])
    assert alone.parts[2].box[3] > 200  # where nothing else shows where it ends


def test_a_third_beyond_the_frame_is_inferred_there():
    parts = [third(1, (100, 0, 130, 30)), third(2, (100, 30, 130, 60)), third(3, (100, 0, 130, 60))]
    (found,) = built(parts, [[-1, 0, 1, 2]])
    assert found.parts[0].box == pytest.approx((100, -30, 130, 0), abs=4)
    assert found.box == pytest.approx((100, 0, 130, 60), abs=1)


def test_a_whole_implant_that_the_frame_cuts_does_not_shorten_its_thirds():
    parts = [third(1, (100, 15, 130, 45)), third(2, (100, 45, 130, 75)), third(3, (100, 0, 130, 75))]
    (found,) = built(parts, [[-1, 0, 1, 2]])
    assert found.parts[0].box == pytest.approx((100, -15, 130, 15), abs=4)


def test_a_middle_third_lies_between_its_neighbours_wherever_the_whole_implant_is():
    parts = [third(0, (100, 100, 130, 130)), third(2, (100, 160, 130, 190)), third(3, (104, 104, 136, 210))]
    (found,) = built(parts, [[0, -1, 1, 2]])
    (alone,) = built(parts[:2], [[0, -1, 1, -1]])
    assert found.parts[1] == alone.parts[1]


def test_a_single_third_needs_a_neighbour_for_its_direction():
    lone = third(1, (100, 25, 130, 55))
    (alone,) = built([lone], [[-1, 0, -1, -1]])
    assert (alone.parts, alone.axis, alone.width, alone.box) == ((lone,), None, None, lone.box)

    for flipped in (False, True):
        neighbours = [third(2 - part if flipped else part, UPRIGHT[part].box) for part in range(3)]
        rows = [[2, 1, 0, -1] if flipped else [0, 1, 2, -1], [-1, 3, -1, -1]]
        _, found = built([*neighbours, lone], rows, axis=np.array([0.0, 1.0]))
        assert [part.inferred for part in found.parts] == [True, False, True]
        sense = found.axis[1][1] - found.axis[0][1]
        assert (sense < 0) == flipped


def test_whole_implants_move_the_box():
    whole = third(3, (10, 10, 40, 110))
    (complete,) = built([*UPRIGHT, whole], [[0, 1, 2, 3]], weights=(1.0, 0.25))
    assert complete.box == pytest.approx((2.5, 2.5, 32.5, 95))
    (incomplete,) = built([*UPRIGHT, whole], [[0, -1, 2, 3]], weights=(1.0, 0.25))
    assert incomplete.box == pytest.approx(whole.box)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.0)])
def test_a_lone_third_without_a_direction_does_not_pull_the_whole_box_in(weights):
    whole = third(3, (0, 0, 30, 90))
    (found,) = built([third(1, (0, 30, 30, 60)), whole], [[-1, 0, -1, 1]], weights=weights)
    assert (len(found.parts), found.box) == (1, whole.box)


def test_a_whole_implant_without_thirds():
    whole = third(3, (10, 10, 40, 110))
    (found,) = built([whole], [[-1, -1, -1, 0]])
    assert (found.parts, found.whole, found.box, found.axis) == ((), whole, whole.box, None)


@pytest.mark.parametrize(("k", "sense"), [(0, 1), (2, -1)])
def test_an_outer_third_in_a_whole_implant_shows_the_direction(k, sense):
    whole = third(3, (0, 0, 30, 90))
    lone = third(k, (0, 0, 30, 30))
    (found,) = built([lone, whole], [[0 if slot == k else -1 for slot in range(3)] + [1]])
    assert np.sign(found.axis[1][1] - found.axis[0][1]) == sense
    assert sum(part.inferred for part in found.parts) == 2


@pytest.mark.parametrize("k", [0, 1])
def test_a_third_at_the_centre_of_its_whole_implant_shows_no_direction(k):
    (found,) = built(
        [third(k, (0, 30, 30, 60)), third(3, (0, 0, 30, 90))], [[0 if slot == k else -1 for slot in range(3)] + [1]]
    )
    assert (len(found.parts), found.axis) == (1, None)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_thirds_of_a_whole_implant_alone_are_inferred_in_the_sense_of_its_neighbour(flipped):
    neighbours = [third(2 - part if flipped else part, UPRIGHT[part].box) for part in range(3)]
    whole = third(3, (100, 0, 130, 90))
    rows = [[2, 1, 0, -1] if flipped else [0, 1, 2, -1], [-1, -1, -1, 3]]
    _, found = built([*neighbours, whole], rows, axis=np.array([0.0, 1.0]))
    assert found.box == whole.box  # of its own, whatever is inferred in it
    assert all(part.inferred and min(part.box_std) > 0 for part in found.parts)
    tops = [part.box[1] for part in found.parts]
    assert tops == pytest.approx([60, 30, 0] if flipped else [0, 30, 60], abs=6)
    assert found.width == pytest.approx(30, abs=3)
    assert (found.axis[1][1] < found.axis[0][1]) == flipped


@pytest.mark.parametrize("turns", range(4))
def test_a_neighbour_of_the_other_jaw_lends_no_direction(turns):
    """The one above is nearer, but implants of one jaw stand side by side."""
    rows = [[0, 1, 2, -1], [3, 4, 5, -1], [-1, -1, -1, 6]]
    boxes = [(0, 30 * k, 30, 30 * k + 30) for k in (2, 1, 0)]  # of the upper jaw: apex up
    boxes += [(300, 100 + 30 * k, 330, 130 + 30 * k) for k in range(3)] + [(0, 105, 30, 195)]
    axis = np.array([0.0, 1.0])
    for _ in range(turns):
        boxes = [(-y1, x0, -y0, x1) for x0, y0, x1, y1 in boxes]
        axis = np.array([-axis[1], axis[0]])
    box = np.array(boxes)
    shift = box[:, :2].min(axis=0)
    parts = [third(k, tuple(b - np.tile(shift, 2))) for k, b in zip((0, 1, 2, 0, 1, 2, 3), box, strict=True)]
    below = built(parts, rows, axis=axis)[2]
    assert len(below.parts) == 3 and (np.array(below.axis[1]) - below.axis[0]) @ axis > 0
    alone = built(parts, [rows[0], rows[2]], axis=axis)[1]
    assert (len(alone.parts), alone.axis) == (0, None)


def test_every_implant_is_completed_as_if_it_were_alone():
    # Four that miss the same third, in two directions, between others; all share the axis of the image.
    places = [(0, 1), (200, -1), (400, 1), (600, -1)]
    parts = [
        third(k, (x, y, x + 30 + 4 * (k == 0), y + 30))
        for n, (x, sense) in enumerate(places)
        for k, y in ((0, 30 * n), (1, 30 * n + 30 * sense))
    ]
    parts += [third(k, (800, 30 * k, 830, 30 * k + 30)) for k in range(3)] + [third(3, (900, 0, 930, 90))]
    rows = [[0, 1, -1, -1], [8, 9, 10, -1], [2, 3, -1, -1], [-1, -1, -1, 11], [4, 5, -1, -1], [6, -1, 7, -1]]
    parts[7] = third(2, parts[7].box)
    together = built(parts, rows)
    for row, found in zip(rows, together, strict=True):
        if row[3] < 0:
            assert built(parts, [row]) == [found]
    assert together[3].parts == ()  # without an axis of the image, nothing tells the direction of a bare whole
    assert [len(found.parts) for found in together] == [3, 3, 3, 0, 3, 3]


def test_no_implants():
    assert built([], np.empty((0, 4), int)) == []


def test_millimetres_follow_the_scale():
    record = {"width": 400, "height": 400, "annotations": implant(0, (200, 200), 0, 120)}
    (found,) = fitted().assemble(detections(record, is_part), mm_per_pixel=0.1)
    assert found.length_mm == pytest.approx(12, rel=0.02)
    stretched = [[0.1, 0.0], [0.0, 0.2]]
    (taller,) = fitted().assemble(detections(record, is_part), mm_per_pixel=stretched)
    assert taller.length_mm == pytest.approx(2 * found.length_mm)
    assert taller.width_mm == pytest.approx(found.width_mm)
