import pytest

from implantdet.data.groups import connected_groups, equal_values, patient_groups


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


def test_images_of_a_patient_or_a_source_are_a_group_as_far_as_they_are_known():
    records = [
        {"image_id": 7, "source_id": "s0", "patient_id": "A"},
        {"image_id": 8, "source_id": "s0"},
        {"image_id": 9, "patient_id": "A"},
        {"image_id": 5},
    ]
    groups = patient_groups(records)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_images_of_two_datasets_that_count_alike_are_grouped_by_their_place():
    records = [{"image_id": 1, "patient_id": "A"}, {"image_id": 2}, {"image_id": 1}, {"image_id": 2, "patient_id": "A"}]
    groups = patient_groups(records)
    assert groups[0] == groups[3]
    assert len(set(groups)) == 3
