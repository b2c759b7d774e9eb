import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from implantdet.data.folds import choose_group_key, make_folds, part_table
from implantdet.data.problems import DataError


def dataset(num_images, num_patients, seed=0, key="patient_id", shares=(0.7, 0.25, 0.05)):
    """Images of random patients, with 0 to 8 boxes of classes of the given shares."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, key: f"p{rng.integers(num_patients)}"} for i in range(num_images)]
    annotations = [
        {"image_id": image["id"], "category_id": int(rng.choice(len(shares), p=shares)) + 1}
        for image in images
        for _ in range(rng.integers(0, 9))
    ]
    categories = [{"id": index + 1, "name": f"class {index}"} for index in range(len(shares))]
    return {"images": images, "annotations": annotations, "categories": categories}


def parts_of(folds):
    return [folds["test"], *folds["folds"]]


@settings(max_examples=30, deadline=None)
@given(st.integers(40, 120), st.integers(8, 60), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_no_group_crosses_a_split_and_no_image_is_lost(num_images, num_patients, seed, data_seed):
    content = dataset(num_images, num_patients, data_seed)
    ids = [image["id"] for image in content["images"]]
    rng = np.random.default_rng(data_seed)
    same_picture = [tuple(rng.choice(ids, 2).tolist()) for _ in range(3)]
    folds = make_folds(content, seed=seed, same_picture=same_picture)
    part_of = {image_id: part for part, members in enumerate(parts_of(folds)) for image_id in members}
    assert sorted(image_id for part in parts_of(folds) for image_id in part) == ids
    for patient in {image["patient_id"] for image in content["images"]}:
        assert len({part_of[image["id"]] for image in content["images"] if image["patient_id"] == patient}) == 1
    for first, second in same_picture:
        assert part_of[first] == part_of[second]
    assert folds == make_folds(content, seed=seed, same_picture=same_picture)


def test_images_and_classes_are_spread_evenly():
    content = dataset(1000, 400)
    folds = make_folds(content)
    assert all(195 <= len(part) <= 205 for part in parts_of(folds))
    for category in content["categories"]:
        owners = [a["image_id"] for a in content["annotations"] if a["category_id"] == category["id"]]
        counts = [len([owner for owner in owners if owner in set(part)]) for part in parts_of(folds)]
        assert max(counts) - min(counts) <= 0.03 * len(owners) + 2


def test_seed_decides():
    content = dataset(100, 50)
    assert make_folds(content, seed=1) == make_folds(content, seed=1)
    assert make_folds(content, seed=1)["test"] != make_folds(content, seed=2)["test"]
    assert make_folds(content, seed=7)["seed"] == 7


def test_a_class_with_a_single_box_is_no_obstacle():
    content = dataset(60, 30)
    content["categories"] += [{"id": 9, "name": "rare"}, {"id": 10, "name": "never"}]
    content["annotations"].append({"image_id": 1, "category_id": 9})
    folds = make_folds(content)
    rows = {row[0]: row[1:] for row in part_table(content, folds)}
    assert sorted(rows["rare"]) == ["0", "0", "0", "0", "1"]
    assert rows["never"] == ["0"] * 5
    assert sum(map(int, rows["images"])) == 60
    assert sum(int(count) for row in list(rows.values())[2:] for count in row) == len(content["annotations"])


def test_patient_goes_before_source():
    images = [{"id": 1, "patient_id": "p", "source_id": "s"}, {"id": 2, "patient_id": "q"}]
    assert choose_group_key(images) == "patient_id"
    images[1] = {"id": 2, "source_id": "t"}
    assert choose_group_key(images) == "source_id"


def test_what_is_known_of_the_other_key_counts_too():
    content = dataset(60, 30, key="source_id")
    sources = sorted({image["source_id"] for image in content["images"]})
    for image in content["images"]:
        if image["source_id"] in sources[:10]:  # some sources are known to show one patient
            image["patient_id"] = "p"
    folds = make_folds(content)
    assert folds["group_by"] == "source_id"
    known = {image["id"] for image in content["images"] if "patient_id" in image}
    assert [len(known & set(part)) for part in parts_of(folds)].count(0) == 4
    assert make_folds(content, group_by="image") != folds


def test_without_ids_it_refuses():
    content = dataset(50, 25, key="unknown")
    content["images"][0]["patient_id"] = "p"
    with pytest.raises(DataError, match=r"of 50 images, 1 have a patient_id, 0 have a source_id\..*--group-by image"):
        make_folds(content)
    with pytest.raises(DataError, match="49 of 50 images have no patient_id"):
        make_folds(content, group_by="patient_id")
    folds = make_folds(content, group_by="image")
    assert (folds["group_by"], sum(map(len, parts_of(folds)))) == ("image", 50)


def test_too_few_groups():
    with pytest.raises(DataError, match=r"50 images in [1-4] group\(s\); expected 5 groups or more"):
        make_folds(dataset(50, 4))
    make_folds({**dataset(5, 10**9), "annotations": []})
