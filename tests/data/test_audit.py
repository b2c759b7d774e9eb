import json

import numpy as np
import pytest
from PIL import Image
from test_phash import jaw

from implantdet.data.audit import audit, same_picture_pairs
from implantdet.data.idd import save_idd, write_json
from implantdet.data.problems import DataError

# source, split, picture, change: three images of a, two of b, one of c, and c's picture under the name d.
IMAGES = [
    ("a", "train", 0, lambda x: x),
    ("a", "train", 0, lambda x: x[:, ::-1]),
    ("a", "valid", 0, lambda x: np.rot90(255 * (x / 255) ** 0.6)),
    ("b", "train", 1, lambda x: x),
    ("b", "train", 2, lambda x: x),  # one source, but another picture
    ("c", "train", 3, lambda x: x),
    ("d", "valid", 3, lambda x: x[::-1]),
    ("e", "valid", 4, lambda x: x),
]


@pytest.fixture
def root(tmp_path):
    images = []
    (tmp_path / "images").mkdir()
    for number, (source, split, seed, change) in enumerate(IMAGES, start=1):
        levels = np.ascontiguousarray(change(jaw(seed))).astype(np.uint8)
        Image.fromarray(levels).save(tmp_path / "images" / f"{number}.png")
        height, width = levels.shape
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        images[-1].update(source_id=source, split=split)
    save_idd(tmp_path, {"images": images, "annotations": [], "categories": []})
    return tmp_path


def test_counts_by_hand(root):
    found = audit(root)
    source, picture, both = (found["relations"][key] for key in ("source_id", "picture", "any"))
    assert (source["groups"], source["with_several_images"]) == (5, 2)
    assert source["shipped"] == {"groups_across_parts": 1, "leaking_images": {"train": [2, 5], "valid": [1, 3]}}
    assert (picture["groups"], picture["with_several_images"]) == (5, 2)  # a a a, b, b, c d, e
    assert picture["shipped"] == {"groups_across_parts": 2, "leaking_images": {"train": [3, 5], "valid": [2, 3]}}
    assert (both["groups"], both["with_several_images"]) == (4, 3)
    assert "patient_id" not in found["relations"]
    assert found["hash"] == {
        "same_source_pairs": 4,
        "same_source_pairs_found": 3,
        "other_source_pairs_found": 1,
        "pairs_found": 4,
    }
    assert [(pair["image_ids"], pair["same_source_id"]) for pair in found["same_picture"]] == [
        ([1, 2], True),
        ([1, 3], True),
        ([2, 3], True),
        ([6, 7], False),
    ]
    json.dumps(found, allow_nan=False)


def test_patients_and_folds(root):
    content = json.loads((root / "annotations.json").read_text())
    for image in content["images"]:
        image["patient_id"] = "p" if image["id"] in (4, 8) else f"p{image['id']}"
        del image["source_id"], image["split"]
    save_idd(root, content)
    write_json(root / "folds.json", {"test": [1, 2, 3], "folds": [[4, 5], [6, 7], [8], []]})
    found = audit(root)
    patient = found["relations"]["patient_id"]
    assert "shipped" not in patient
    assert patient["folds"]["groups_across_parts"] == 1
    assert patient["folds"]["leaking_images"] == {"fold 0": [1, 2], "fold 1": [0, 2], "fold 2": [1, 1], "test": [0, 3]}
    assert found["relations"]["picture"]["folds"]["groups_across_parts"] == 0
    assert found["hash"]["same_source_pairs"] == 0
    assert found["same_picture"][0]["same_patient_id"] is False


def test_pairs_are_read_back(root):
    assert same_picture_pairs(root) == []
    write_json(root / "audit.json", audit(root))
    assert same_picture_pairs(root) == [(1, 2), (1, 3), (2, 3), (6, 7)]
    write_json(root / "audit.json", {"same_picture": [{"image_ids": [1, 99]}]})
    with pytest.raises(
        DataError, match=r"images that the dataset lacks: \[99\]; remove it, and run `implantdet audit`"
    ):
        same_picture_pairs(root)
    for content in ([], {}, {"same_picture": [{"image_ids": [1]}]}, {"same_picture": [{"image_ids": [1, [2]]}]}):
        write_json(root / "audit.json", content)
        with pytest.raises(DataError, match="malformed"):
            same_picture_pairs(root)


def test_what_was_deleted_by_hand_stays_out(root):
    found = audit(root)
    wrong = found["same_picture"].pop()
    write_json(root / "audit.json", found)
    again = audit(root)
    assert wrong not in again["same_picture"]
    assert again["same_picture"] == found["same_picture"]
    assert again["hash"] == found["hash"]
    assert again["relations"]["picture"]["with_several_images"] == 1
    write_json(root / "audit.json", again)
    assert audit(root) == again


def test_what_was_deleted_of_another_audit_is_an_error(root):
    found = audit(root)
    found["same_picture"].pop()
    write_json(root / "audit.json", found | {"num_images": 7})
    with pytest.raises(DataError, match=r"3 of the 4 pairs that were found in 7 images.*now 4 are found in 8 images"):
        audit(root)
    write_json(root / "audit.json", {"same_picture": []})
    with pytest.raises(DataError, match=r"malformed .*remove it"):
        audit(root)


def test_all_unreadable_images_are_told_at_once(root):
    for name in ("2.png", "5.png"):
        (root / "images" / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 image\(s\) cannot be read") as caught:
        audit(root)
    assert [problem.file[-5:] for problem in caught.value.problems] == ["2.png", "5.png"]
