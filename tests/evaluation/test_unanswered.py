"""What nobody can judge counts neither for nor against a detection."""

import pytest
from conftest import write_idd
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from implantdet.data.idd import load_idd, write_json
from implantdet.data.register import register_idd
from implantdet.evaluation.coco_evaluator import COCOEvaluator, coco_ground_truth
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.evaluation.unanswered import unanswered
from implantdet.modeling.multi_label import CategoryTable

NAMES = ["coronal.level.bone", "coronal.thread.none", "coronal.thread.v_shaped", "middle.body.straight", "ITI", "Bego"]
BONE, NONE, V_SHAPED, STRAIGHT, ITI, BEGO = range(6)
TABLE = CategoryTable.from_names(NAMES, ["coronal"] * 3 + ["middle", "system", "system"])
CORONAL, MIDDLE, WHOLE = [10.0, 0.0, 20.0, 20.0], [10.0, 20.0, 20.0, 20.0], [10.0, 0.0, 20.0, 60.0]


def annotation(category, bbox, implant_id=0, **fields):
    known = {"category_id": category, "bbox": bbox, "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, **fields}
    return known | ({} if implant_id is None else {"implant_id": implant_id})


def categories(crowds):
    assert all(crowd["iscrowd"] for crowd in crowds)
    return sorted(crowd["category_id"] for crowd in crowds)


@pytest.mark.parametrize("implant_id", [3, None])  # boxes that lie on one another are of one implant as well
def test_an_axis_without_an_answer_may_have_every_value(implant_id):
    known = [annotation(BONE, CORONAL, implant_id), annotation(STRAIGHT, MIDDLE, implant_id)]
    crowds = unanswered([*known, annotation(ITI, WHOLE, implant_id)], TABLE)
    assert categories(crowds) == [NONE, V_SHAPED]
    assert all(crowd["bbox"] == CORONAL for crowd in crowds)
    answered = [*known, annotation(NONE, CORONAL, implant_id), annotation(ITI, WHOLE, implant_id)]
    assert unanswered(answered, TABLE) == []


def test_a_third_that_is_not_annotated_has_no_place():
    assert unanswered([annotation(STRAIGHT, MIDDLE), annotation(ITI, WHOLE)], TABLE) == []


def test_an_implant_without_a_system_may_be_of_each():
    crowds = unanswered(
        [annotation(BONE, CORONAL), annotation(NONE, CORONAL), annotation(STRAIGHT, MIDDLE), annotation(ITI, WHOLE, 1)],
        TABLE,
    )
    assert categories(crowds) == [ITI, BEGO]
    for crowd in crowds:
        assert BoxMode.convert(crowd["bbox"], crowd["bbox_mode"], BoxMode.XYWH_ABS) == [10, 0, 20, 40]


def test_parts_that_nobody_has_joined_are_no_implant_to_name():
    assert unanswered([annotation(BONE, CORONAL, None), annotation(NONE, CORONAL, None)], TABLE) == []


def test_crowds_and_images_without_annotations_ask_nothing():
    assert unanswered([], TABLE) == []
    assert unanswered([annotation(BONE, CORONAL, iscrowd=1)], TABLE) == []
    no_axes = CategoryTable.from_names(["caries", "ITI"], ["", "system"])
    assert unanswered([annotation(0, CORONAL)], no_axes) == []


@pytest.fixture
def dataset(tmp_path):
    """Every implant has its three thirds; of half the middle ones another axis is asked that nobody answers."""
    root = write_idd(tmp_path / "open")
    content = load_idd(root)
    content["categories"].append({"id": 6, "name": "middle.body.straight", "supercategory": "middle"})
    threads = [item for item in content["annotations"] if item["category_id"] == 2]
    for item in threads[::2]:
        number = len(content["annotations"]) + 1
        content["annotations"].append({**item, "id": number, "category_id": 6})
    write_json(root / "annotations.json", content)
    register_idd(root, tmp_path.name)
    return f"{tmp_path.name}_val_fold0"


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_detections_that_nobody_can_judge_are_passed_over(dataset, task):
    truth = coco_ground_truth(dataset)
    answers = [item for item in truth["annotations"] if not item["iscrowd"]]
    assert len(answers) == sum(len(record["annotations"]) for record in DatasetCatalog.get(dataset))
    middles = [item for item in answers if item["category_id"] == 2]
    answered = {tuple(item["bbox"]) for item in answers if item["category_id"] == 6}
    assert 0 < len(answered) < len(middles)
    what = "bbox" if task == "bbox" else "segmentation"
    found = []
    for item in middles:  # says of all that they are straight, and is surest where nobody knows
        size = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}[item["image_id"]]
        said = item[what] if task == "bbox" else rle(item[what], size)
        score = 0.5 if tuple(item["bbox"]) in answered else 0.9
        found.append({"image_id": item["image_id"], "category_id": 6, "score": score, what: said})
    assert coco_metrics(truth, found, task)["per_class"]["middle.body.straight"]["AP50"] == pytest.approx(100)
    without = truth | {"annotations": answers}
    assert coco_metrics(without, found, task)["per_class"]["middle.body.straight"]["AP50"] < 100


def rle(polygons, size):
    return mask_util.merge(mask_util.frPyObjects(polygons, *size))


def test_results_count_answers_alone(dataset, tmp_path):
    evaluator = COCOEvaluator(dataset, tmp_path)
    evaluator.process([], [])
    evaluator.evaluate()
    num_annotations = sum(len(record["annotations"]) for record in DatasetCatalog.get(dataset))
    assert f'"num_annotations": {num_annotations},' in (tmp_path / "results.json").read_text(encoding="utf-8")
