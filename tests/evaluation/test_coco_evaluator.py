"""The evaluator: from the model's instances and a registered dataset to results.json."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util

from implantdet.data.register import register_idd
from implantdet.evaluation.coco_evaluator import COCOEvaluator, coco_ground_truth, without_nan


@pytest.fixture
def dataset(idd_root):
    register_idd(idd_root, "tiny_masks")
    return "tiny_masks_val_fold0"


def perfect_outputs(name, shift=0.0, masks=False):
    """What a model would say that has seen the ground truth, moved to the right by ``shift``."""
    outputs = []
    for record in DatasetCatalog.get(name):
        boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in record["annotations"]]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes) + torch.tensor([shift, 0, shift, 0]))
        instances.scores = torch.linspace(0.5, 0.9, len(boxes))
        instances.pred_classes = torch.tensor([item["category_id"] for item in record["annotations"]])
        if masks:
            rles = [
                mask_util.merge(mask_util.frPyObjects(item["segmentation"], record["height"], record["width"]))
                for item in record["annotations"]
            ]
            instances.pred_masks = torch.from_numpy(np.stack([mask_util.decode(rle) for rle in rles]))
        outputs.append({"instances": instances})
    return DatasetCatalog.get(name), outputs


def test_perfect_detections_of_boxes_and_masks(dataset, tmp_path):
    evaluator = COCOEvaluator(dataset, tmp_path / "new" / "folder", tasks=("bbox", "segm"))
    for _ in range(2):  # the second round starts anew
        evaluator.reset()
        evaluator.process(*perfect_outputs(dataset, masks=True))
    flat = evaluator.evaluate()
    assert flat["bbox"]["AP"] == pytest.approx(100)
    assert flat["bbox"]["AP-middle.thread.v_shaped"] == pytest.approx(100)
    # Polygons are painted on whole pixels, so masks lose a little.
    assert flat["segm"]["AP50"] == pytest.approx(100)
    written = json.loads((tmp_path / "new/folder/results.json").read_text(encoding="utf-8"))
    assert written["dataset"] == dataset
    assert (written["num_images"], written["num_annotations"], written["num_detections"]) == (2, 12, 12)
    assert written["bbox"]["per_class"]["apical.apex.dome"]["AP50"] == pytest.approx(100)
    assert written["bbox"]["APl"] is None  # no box is that large, and JSON has no NaN
    detections = json.loads((tmp_path / "new/folder/coco_instances_results.json").read_text(encoding="utf-8"))
    assert {detection["category_id"] for detection in detections} <= {1, 2, 3, 4, 5}


def test_systems_keep_their_own_ids(idd_root, tmp_path):
    register_idd(idd_root, "tiny_masks")
    evaluator = COCOEvaluator("tiny_masks_val_fold0_systems", tmp_path)
    evaluator.process(*perfect_outputs("tiny_masks_val_fold0_systems"))
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    detections = json.loads((tmp_path / "coco_instances_results.json").read_text(encoding="utf-8"))
    assert {detection["category_id"] for detection in detections} <= {4, 5}


def test_a_model_that_finds_nothing(dataset, tmp_path):
    records, _ = perfect_outputs(dataset)
    evaluator = COCOEvaluator(dataset, tmp_path)
    empty = Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0))
    evaluator.process(records, [{"instances": empty}] * len(records))
    assert evaluator.evaluate()["bbox"]["AP"] == 0


def test_processes_put_their_detections_together(dataset, tmp_path, monkeypatch):
    records, outputs = perfect_outputs(dataset, shift=1.0)
    alone = COCOEvaluator(dataset, tmp_path / "alone")
    alone.process(records, outputs)
    expected = alone.evaluate()
    other = COCOEvaluator(dataset, tmp_path / "other")
    other.process(records[1:], outputs[1:])
    first = COCOEvaluator(dataset, tmp_path / "together")
    first.process(records[:1], outputs[:1])
    monkeypatch.setattr(comm, "gather", lambda detections, dst: [detections, other._detections])
    assert str(first.evaluate()) == str(expected)  # as text, for NaN
    names = ("alone", "together")
    written = [(tmp_path / name / "results.json").read_text(encoding="utf-8") for name in names]
    assert written[0] == written[1]


def test_other_processes_return_nothing(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert COCOEvaluator(dataset, tmp_path).evaluate() == {}
    assert not list(tmp_path.iterdir())


def test_ground_truth_of_a_dataset_with_its_own_ids_and_crowds():
    name = "own_ids"
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0]]  # a triangle of 6 pixels
    record = {
        "image_id": 9,
        "width": 20,
        "height": 10,
        "annotations": [
            {"bbox": [2, 1, 6, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": square},
            {"bbox": [0, 0, 5, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
        ],
    }
    DatasetCatalog.register(name, lambda: [record])
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 0, 3: 1})
    try:
        truth = coco_ground_truth(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert truth["images"] == [{"id": 9, "width": 20, "height": 10}]
    assert truth["categories"] == [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]
    first, second = truth["annotations"]
    assert (first["bbox"], first["category_id"], first["area"], first["iscrowd"]) == ([2, 1, 4, 3], 3, 6, 0)
    assert (second["bbox"], second["category_id"], second["area"], second["iscrowd"]) == ([0, 0, 5, 2], 7, 10, 1)
    assert not any(math.isnan(value) for value in first["bbox"])


def test_nan_becomes_null_at_any_depth():
    assert without_nan({"a": [1.0, math.nan], "b": {"c": math.nan}}) == {"a": [1.0, None], "b": {"c": None}}


@pytest.fixture
def foreign():
    """A dataset as Detectron2's tutorial registers one: no ids of categories; an image without annotations."""
    annotation = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    records = [
        {"image_id": "first.png", "height": 64, "width": 64, "annotations": [annotation]},
        {"image_id": "second.png", "height": 64, "width": 64},
    ]
    DatasetCatalog.register("foreign", lambda: records)
    MetadataCatalog.get("foreign").thing_classes = ["a", "b"]
    yield records
    DatasetCatalog.remove("foreign")
    MetadataCatalog.remove("foreign")


def sees_all(record):
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record.get("annotations", ())]
    found = Instances((64, 64), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    found.scores, found.pred_classes = torch.full((len(boxes),), 0.9), torch.ones(len(boxes), dtype=torch.int64)
    return {"instances": found}


def test_a_dataset_as_detectron2_has_them(foreign, tmp_path):
    evaluator = COCOEvaluator("foreign", tmp_path)
    evaluator.process(foreign, [sees_all(record) for record in foreign])
    assert evaluator.evaluate()["bbox"]["AP-b"] == pytest.approx(100)
    (found,) = json.loads((tmp_path / "coco_instances_results.json").read_text(encoding="utf-8"))
    assert (found["image_id"], found["category_id"]) == ("first.png", 1)


def test_masks_are_not_judged_by_boxes(foreign, tmp_path):
    evaluator = COCOEvaluator("foreign", tmp_path, ("bbox", "segm"))
    evaluator.process(foreign, [sees_all(record) for record in foreign])
    with pytest.raises(ValueError, match="foreign: 1 of 1 annotations have no mask, expected a 'segmentation' in each"):
        evaluator.evaluate()


def test_detections_on_images_of_another_dataset_are_an_error(foreign, tmp_path):
    evaluator = COCOEvaluator("foreign", tmp_path)
    evaluator.process([foreign[0] | {"image_id": "third.png"}], [sees_all(foreign[0])])
    with pytest.raises(ValueError, match=r"on 1 images that the ground truth lacks, such as third\.png"):
        evaluator.evaluate()
