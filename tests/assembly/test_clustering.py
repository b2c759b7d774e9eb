import numpy as np
import pytest

from implantdet.assembly.candidates import Parts
from implantdet.assembly.clustering import k_means, k_means_paper


def parts(boxes, slots):
    alone = np.arange(1.0, len(slots) + 1)
    return Parts(np.array(boxes, float).reshape(-1, 4), np.array(slots, np.intp), alone)


def column(x):
    return [[x, 30 * k, x + 30, 30 * k + 30] for k in range(3)]


def groups(members):
    return sorted(sorted(part for part in row if part >= 0) for row in members.tolist())


TWO = parts([*column(0), *column(300)], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("cluster", [k_means, lambda p: k_means_paper(p, 1.25, 0.25)])
def test_two_distant_implants(cluster):
    assert groups(cluster(TWO)) == [[0, 1, 2], [3, 4, 5]]


def test_literally_as_many_clusters_as_parts_group_nothing():
    """The paper's k without the thresholds: every part is its own implant."""
    apart = parts([[x, 0, x + 10, 10] for x in range(0, 120, 20)], [0, 1, 2, 0, 1, 2])
    assert groups(k_means_paper(apart, 0.0, 1.0)) == [[k] for k in range(6)]


@pytest.mark.parametrize(
    ("merge_distance", "merge_overlap", "merged"), [(0.6, 0.34, False), (0.6, 0.33, True), (0.7, 0.34, True)]
)
def test_clusters_merge_by_distance_or_by_overlap(merge_distance, merge_overlap, merged):
    """Two boxes of 30 pixels: they share a third of each, and their centres are 20 pixels apart."""
    pair = parts([[0, 0, 30, 30], [0, 20, 30, 50]], [0, 1])
    assert groups(k_means_paper(pair, merge_distance, merge_overlap)) == ([[0, 1]] if merged else [[0], [1]])


def test_overlap_is_a_share_of_the_smaller_cluster():
    small = parts([[0, 0, 90, 90], [70, 30, 100, 60]], [0, 1])  # two thirds of the small one
    assert groups(k_means_paper(small, 0.0, 0.66)) == [[0, 1]]
    assert groups(k_means_paper(small, 0.0, 0.67)) == [[0], [1]]


def test_never_two_of_one_third():
    crowd = parts([[0, 0, 30, 30], [0, 2, 30, 32], [0, 30, 30, 60]], [0, 0, 1])
    assert groups(k_means_paper(crowd, 1.0, 0.1)) == [[1, 2]]  # of the two, that which costs more to leave out


@pytest.mark.parametrize("cluster", [k_means, lambda p: k_means_paper(p, 1.25, 0.25)])
def test_no_parts_one_part_and_parts_on_one_spot(cluster):
    assert groups(cluster(parts([], []))) == []
    assert groups(cluster(parts([[0, 0, 9, 9]], [1]))) == [[0]]
    assert len(cluster(parts([[0, 0, 9, 9]] * 4, [1] * 4))) == 1


def test_whole_implants_join_the_cluster_that_they_hold():
    layout = parts([*column(0), *column(300), [0, 0, 30, 90], [600, 0, 630, 90]], [0, 1, 2, 0, 1, 2, 3, 3])
    assert groups(k_means(layout)) == [[0, 1, 2, 6], [3, 4, 5], [7]]


def test_a_cluster_takes_no_whole_implant_of_its_neighbour():
    """The first one's own was not detected, and its thirds touch that of the second."""
    layout = parts([*column(0), *column(60), [25, 0, 93, 90]], [0, 1, 2, 0, 1, 2, 3])
    assert groups(k_means(layout)) == [[0, 1, 2], [3, 4, 5, 6]]
    stray = parts([*column(0)[:2], [0, 400, 30, 430], [0, 0, 30, 90]], [0, 1, 2, 3])  # a false third far below
    assert groups(k_means(stray)) == [[0, 1, 2, 3]]
    first_alone = parts([*column(0), [25, 0, 93, 90]], [0, 1, 2, 3])
    assert groups(k_means(first_alone)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("cluster", [k_means, lambda p: k_means_paper(p, 1.25, 0.25)])
def test_turning_the_image_changes_no_group(cluster):
    """Equal parts come in the order of their coordinates, which turns with the image."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        boxes = np.array([np.array(column(x)) + rng.uniform(0, 25, (3, 1)) for x in rng.uniform(0, 300, 5)])
        boxes = boxes.reshape(-1, 4)
        turned = np.stack([-boxes[:, 3], boxes[:, 0], -boxes[:, 1], boxes[:, 2]], axis=1)
        found = []
        for these in (boxes, turned):
            order = np.lexsort(these.T)
            members = cluster(Parts(these[order], np.tile([0, 1, 2], 5)[order], np.ones(15)))
            found.append(sorted(sorted(order[part].tolist() for part in row if part >= 0) for row in members))
        assert found[0] == found[1]
