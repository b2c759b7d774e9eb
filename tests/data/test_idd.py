import json

import pytest
from foreign import coco_content, edit_json, write_image

from implantdet.data import idd
from implantdet.data.idd import ANNOTATIONS, load_folds, load_idd, save_idd, write_json
from implantdet.data.problems import DataError, Problem


@pytest.fixture
def root(tmp_path):
    content = coco_content()
    content["annotations"] = [
        {**annotation, "area": 1.0, "segmentation": annotation.get("segmentation") or [[1, 1, 5, 1, 5, 5]]}
        for annotation in content["annotations"]
    ]
    for image in content["images"]:
        write_image(tmp_path / "images" / image["file_name"])
    save_idd(tmp_path, content)
    return tmp_path


def test_what_is_saved_is_loaded(root):
    content = load_idd(root)
    save_idd(root, content)
    assert load_idd(root) == content
    assert sorted(path.name for path in root.iterdir()) == ["annotations.json", "images"]


def test_missing_folder_and_file_name_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"nowhere': there is no such folder\. .*implantdet import SRC --out DIR"):
        load_idd(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"it has no annotations\.json.*datasets/README"):
        load_idd(tmp_path)
    with pytest.raises(DataError, match=r"it has no folds\.json.*implantdet folds DIR"):
        load_folds(tmp_path)


@pytest.mark.parametrize(
    ("key", "index", "fields", "line"),
    [
        ("images", 1, {"id": 0}, "image number 2: duplicate id: 0"),
        ("images", 1, {"id": "1"}, "image number 2: 'id' must be a whole number; found '1'"),
        ("images", 1, {"file_name": "a.jpg"}, r"image number 2: duplicate file_name: 'a\.jpg'"),
        ("images", 1, {"file_name": "../a.jpg"}, "image 1: path .* leaves its folder"),
        ("images", 1, {"width": 0}, "image 1: 'width' must be"),
        ("images", 1, {"width": 10**400}, "image 1: 'width' must be"),
        ("images", 1, {"file_name": "z.png"}, r"images/z\.png: missing image"),
        ("annotations", 1, {"id": 0}, "annotation number 2: duplicate id: 0"),
        ("annotations", 1, {"image_id": 9}, "annotation 1: annotation of an unknown image: image_id 9"),
        ("annotations", 1, {"image_id": [9]}, r"annotation 1: annotation of an unknown image: image_id \[9\]"),
        ("annotations", 1, {"category_id": 9}, "annotation 1: unknown class: category_id 9"),
        ("annotations", 1, {"bbox": [0, 0, 81, 5]}, "annotation 1: box outside"),
        ("categories", 1, {"name": "screw"}, "category number 3: duplicate name: 'screw'"),
        ("categories", 1, {"name": None}, "category number 2: 'name' must be a text"),
        ("categories", 1, {"supercategory": None}, "category 1: 'supercategory' must be a text; found None"),
        ("images", 1, {"id": 10**30}, "image number 2: 'id' must be a whole number"),
    ],
)
def test_broken_records_are_named(root, key, index, fields, line):
    edit_json(root / "annotations.json", lambda content: content[key][index].update(fields))
    with pytest.raises(DataError, match=r"annotations\.json: 1 problem\(s\)\n  .*" + line):
        load_idd(root)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "annotations": [], "categories": []}',
        "",
        "{",
        "[]",
        '{"images": []}',
        '{"images": [1], "annotations": [], "categories": []}',
    ],
)
def test_broken_files_are_named(root, text):
    (root / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.json: (not a JSON file|1 problem)"):
        load_idd(root)


def test_nothing_is_saved_if_a_record_is_broken(root):
    content = load_idd(root)
    before = (root / "annotations.json").read_bytes()
    content["annotations"][0]["bbox"] = [0, 0, 1, 0]
    with pytest.raises(DataError, match="without area"):
        save_idd(root, content)
    assert (root / "annotations.json").read_bytes() == before


def test_a_file_is_checked_once_and_again_when_it_has_changed(root, monkeypatch):
    path = root / ANNOTATIONS
    content = load_idd(root)
    with monkeypatch.context() as patched:
        patched.setattr(idd, "faults", lambda content: 1 / 0)
        assert load_idd(root) == content
    content["annotations"][0]["bbox"] = [0, 0, -1, 5]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="box without area"):
        load_idd(root)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"ж": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ж": 1}
    for content, error in (({1, 2}, TypeError), (float("nan"), ValueError), ("a\ud83d", DataError)):
        with pytest.raises(error):
            write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == {"ж": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "folds",
    [
        [],
        {"test": [1]},
        {"test": [1], "folds": None},
        {"test": [1], "folds": [[2], [3], [4]]},
        {"test": 1, "folds": [[2], [3], [4], [5]]},
        {"test": [[1]], "folds": [[2], [3], [4], [5]]},
        {"test": ["1"], "folds": [[2], [3], [4], [5]]},
    ],
)
def test_malformed_folds(tmp_path, folds):
    write_json(tmp_path / "folds.json", folds)
    with pytest.raises(DataError, match="expected the list 'test' and 4 lists 'folds'"):
        load_folds(tmp_path)


def test_an_image_in_two_parts_is_an_error(tmp_path):
    write_json(tmp_path / "folds.json", {"test": [1], "folds": [[2], [3], [4], [5, 1]]})
    with pytest.raises(DataError, match="more than one part"):
        load_folds(tmp_path)


def test_folds_of_other_images_are_an_error(root):
    write_json(root / "folds.json", {"test": [0], "folds": [[1], [2], [3], []]})
    assert load_folds(root)["folds"][2] == [3]
    with pytest.raises(DataError, match=r"folds\.json: 1 image\(s\) are not in annotations\.json; remove it and run"):
        load_folds(root, load_idd(root))


def test_an_exception_shows_the_first_problems_and_keeps_all():
    problems = [Problem("f", f"line {number}", "wrong") for number in range(25)]
    error = DataError("f is wrong", problems)
    assert str(error).splitlines()[:2] == ["f is wrong", "  f: line 0: wrong"]
    assert str(error).splitlines()[-1] == "  … and 5 more"
    assert len(error.problems) == 25
