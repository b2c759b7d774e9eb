import json
from itertools import count

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from foreign import edit_json, write_image
from pycocotools import mask as mask_utils

from implantdet.data.idd import save_idd, write_json
from implantdet.data.problems import DataError
from implantdet.data.register import image_ids, register_idd

NUMBERS = count()


@pytest.fixture
def name():
    """A prefix that nobody has registered."""
    return f"register{next(NUMBERS)}"


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "idd")


def write_dataset(root):
    """Ten images with ids 10, 20, …; 10 and 60 are the test set, 20 and 70 are fold 0, and so on."""
    content = {
        "images": [
            {
                "id": 10 * n,
                "file_name": f"{n}.png",
                "width": 80,
                "height": 60,
                "patient_id": f"p{n}",
                "modality": "panoramic",
                "mm_per_pixel_matrix": [[0.1, 0.0], [0.0, 0.2]],
            }
            for n in range(1, 11)
        ],
        "annotations": [],
        "categories": [
            {"id": 3, "name": "crown"},
            {"id": 8, "name": "ITI", "supercategory": "system"},
            {"id": 5, "name": "middle.body.straight", "supercategory": "middle"},
        ],
    }
    box = {"bbox": [1.5, 2, 30, 40], "area": 1200, "iscrowd": 0, "implant_id": 4}
    for category_id in (8, 5):
        annotation_id = len(content["annotations"])
        content["annotations"].append({"id": annotation_id, "image_id": 10, "category_id": category_id, **box})
    for image in content["images"]:
        write_image(root / "images" / image["file_name"])
    save_idd(root, content)
    ids = [image["id"] for image in content["images"]]
    write_json(root / "folds.json", {"test": ids[::5], "folds": [ids[k::5] for k in range(1, 5)]})
    return root


def ids(name):
    return {record["image_id"] for record in DatasetCatalog.get(name)}


def test_names_and_their_images(root, name):
    names = register_idd(root, name)
    assert len(names) == len(set(names)) == 18
    assert ids(f"{name}_test") == ids(f"{name}_test_systems") == {10, 60}
    assert ids(f"{name}_val_fold0") == {20, 70}
    assert ids(f"{name}_train_fold0") == {30, 40, 50, 80, 90, 100}
    for k in range(4):
        assert not ids(f"{name}_train_fold{k}") & ids(f"{name}_val_fold{k}")
        assert len(ids(f"{name}_train_fold{k}") | ids(f"{name}_val_fold{k}")) == 8


def test_records(root, name):
    register_idd(root, name)
    records = {record["image_id"]: record for record in DatasetCatalog.get(f"{name}_test")}
    box = {"bbox": [1.5, 2, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, "implant_id": 4}
    assert records[10] == {
        "file_name": str(root.resolve() / "images" / "1.png"),
        "image_id": 10,
        "width": 80,
        "height": 60,
        "patient_id": "p1",
        "modality": "panoramic",
        "mm_per_pixel_matrix": [[0.1, 0.0], [0.0, 0.2]],
        "annotations": [{**box, "category_id": 1}, {**box, "category_id": 2}],
    }
    assert records[60]["annotations"] == []
    metadata = MetadataCatalog.get(f"{name}_test")
    assert metadata.thing_classes == ["crown", "ITI", "middle.body.straight"]
    assert metadata.supercategories == ["", "system", "middle"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 8: 1, 5: 2}
    assert (metadata.evaluator_type, metadata.idd_root) == ("coco", str(root.resolve()))


def test_systems_keep_whole_implants_only(root, name):
    register_idd(root, name)
    records = DatasetCatalog.get(f"{name}_test_systems")
    assert [[a["category_id"] for a in record["annotations"]] for record in records] == [[0], []]
    assert MetadataCatalog.get(f"{name}_test_systems").thing_classes == ["ITI"]


def test_without_systems_or_any_category_the_error_says_so(root, name):
    edit_json(root / "annotations.json", lambda content: content["categories"][1].pop("supercategory"))
    register_idd(root, name)
    with pytest.raises(DataError, match=r"no category of .* has the supercategory 'system'"):
        DatasetCatalog.get(f"{name}_test_systems")
    edit_json(root / "annotations.json", lambda content: content.update(annotations=[], categories=[]))
    with pytest.raises(DataError, match=r"no category of .*annotations\.json is there"):
        DatasetCatalog.get(f"{name}_test")


def test_twice_the_same_folder_is_harmless_and_another_is_an_error(root, name, tmp_path, monkeypatch):
    names = register_idd(root, name)
    monkeypatch.chdir(root.parent)
    assert register_idd(root.name, name) == names
    DatasetCatalog.get(f"{name}_test")
    DatasetCatalog.get(f"{name}_test")
    other = write_dataset(tmp_path / "other")
    with pytest.raises(
        DataError, match=rf"'{name}_train_fold0' already stands for .*idd, not for .*other; choose another"
    ):
        register_idd(other, name)
    DatasetCatalog.register(f"{name}x_test", list)
    with pytest.raises(DataError, match="already stands for another dataset"):
        register_idd(root, f"{name}x")


def test_registering_reads_nothing_but_looks(root, name, tmp_path):
    with pytest.raises(DataError, match=r"nowhere': there is no such folder\. .*implantdet import"):
        register_idd(tmp_path / "nowhere", name)
    (root / "annotations.json").write_text("not read yet")
    register_idd(root, name)
    with pytest.raises(DataError, match="not a JSON file"):
        DatasetCatalog.get(f"{name}_test")
    (root / "folds.json").unlink()
    with pytest.raises(DataError, match=r"it has no folds\.json.*implantdet folds"):
        register_idd(root, f"{name}x")


def test_folds_of_another_dataset(root, name):
    edit_json(root / "folds.json", lambda folds: folds["test"].append(999))
    register_idd(root, name)
    with pytest.raises(DataError, match=r"folds\.json: 1 image\(s\) are not in annotations\.json; remove it"):
        DatasetCatalog.get(f"{name}_test")


def test_images_in_no_part_are_told(root, name, caplog):
    """As where they were added after the folds were made."""
    edit_json(root / "folds.json", lambda folds: folds["test"].pop())
    register_idd(root, name)
    assert len(DatasetCatalog.get(f"{name}_test")) == 1
    assert "folds.json: 1 image(s) of annotations.json are in no part" in caplog.text


def test_run_lengths_come_out_as_detectron2_decodes_them(root, name):
    runs = {"size": [60, 80], "counts": [100, 50, 60 * 80 - 150]}
    edit_json(root / "annotations.json", lambda content: content["annotations"][0].update(segmentation=runs))
    register_idd(root, name)
    (record, _) = DatasetCatalog.get(f"{name}_test")
    mask = mask_utils.decode(record["annotations"][0]["segmentation"])
    np.testing.assert_array_equal(np.flatnonzero(mask.ravel(order="F")), np.arange(100, 150))
    assert "segmentation" not in record["annotations"][1]
    assert json.loads((root / "annotations.json").read_text())["annotations"][0]["segmentation"] == runs


@pytest.mark.parametrize("part", ["tset", "val_fold9", "val_fold", "fold0", "test_fold0", "val_fold-1"])
def test_parts_that_do_not_exist(part):
    with pytest.raises(DataError, match=rf"part '{part}': expected test, val_fold0 to val_fold3, or train_fold0"):
        image_ids({"test": [1], "folds": [[2], [3], [4], [5]]}, part)


def test_what_the_second_stage_reads_is_carried(tmp_path, name):
    root = write_dataset(tmp_path / "idd")
    told = {"product_line": "ITI BLT", "axis": [[5.0, 5.0], [5.0, 20.0]], "visible_fraction": 0.8}

    def change(content):
        content["images"][0] |= {"source_id": "s", "mm_per_pixel": 0.1}
        del content["images"][0]["mm_per_pixel_matrix"]
        content["annotations"][0] |= told

    edit_json(root / "annotations.json", change)
    register_idd(root, name)
    record = next(record for record in DatasetCatalog.get(f"{name}_test") if record["image_id"] == 10)
    assert (record["source_id"], record["mm_per_pixel"]) == ("s", 0.1)
    assert {key: record["annotations"][0][key] for key in told} == told
    assert not told.keys() & record["annotations"][1].keys()


def test_what_is_as_wide_as_panoramics_are_is_one_unless_it_is_told(root, name):
    shapes = {10: (102, 60), 60: (101, 60)}

    def change(content):
        for image in content["images"]:
            image["width"], image["height"] = shapes.get(image["id"], (200, 60))
            del image["modality"]
        content["images"][1]["modality"] = "periapical"  # of fold 0

    edit_json(root / "annotations.json", change)
    register_idd(root, name)
    test = {record["image_id"]: record.get("modality") for record in DatasetCatalog.get(f"{name}_test")}
    assert test == {10: "panoramic", 60: None}
    told = {record["image_id"]: record["modality"] for record in DatasetCatalog.get(f"{name}_val_fold0")}
    assert told == {20: "periapical", 70: "panoramic"}
