import pytest

from implantdet.data.groups import connected_groups, equal_values


def test_chains_of_pairs_make_one_group():
    groups = connected_groups([10, 20, 30, 40, 50], [(10, 30), (30, 50)])
    assert groups[0] == groups[2] == groups[4]
    assert len(set(groups)) == 3


def test_no_pairs_and_no_images():
    assert connected_groups([7, 8], []) == [0, 1]
    assert connected_groups([], []) == []


def test_unknown_images_are_an_error():
    with pytest.raises(KeyError):
        connected_groups([1, 2], [(1, 3)])


def test_equal_values_connect_and_absent_ones_do_not():
    images = [{"id": 1, "p": "x"}, {"id": 2}, {"id": 3, "p": "x"}, {"id": 4}, {"id": 5, "p": "y"}, {"id": 6, "p": "x"}]
    groups = connected_groups([1, 2, 3, 4, 5, 6], equal_values(images, "p"))
    assert groups[0] == groups[2] == groups[5]
    assert len(set(groups)) == 4
