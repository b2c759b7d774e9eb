"""The probe: features that know the answer, features that do not, and boxes in the right place."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from implantdet.evaluation.features import FeatureEvaluator, Sample, pool_boxes, probe, question


def samples_of(task, num_per_label, informative, groups=8, labels=("round", "oblong", "none")):
    rng = np.random.default_rng(0)
    samples = []
    for index, label in enumerate(labels):
        for n in range(num_per_label):
            features = rng.normal(size=16).astype(np.float32)
            features[index] += 6.0 * informative
            samples.append(Sample(task, label, f"patient{n % groups}", features))
    return samples


def test_probe_tells_what_features_know():
    results = probe(samples_of("apical.hole", 60, informative=True) + samples_of("middle.body", 60, informative=False))
    assert set(results) == {
        "linear",
        "knn",
        *(f"{k}-{t}" for k in ("linear", "knn") for t in ("apical.hole", "middle.body")),
    }
    assert results["linear-apical.hole"] > 97 and results["knn-apical.hole"] > 97
    assert abs(results["linear-middle.body"] - 100 / 3) < 12 and abs(results["knn-middle.body"] - 100 / 3) < 12
    assert results["linear"] == (results["linear-apical.hole"] + results["linear-middle.body"]) / 2


def test_probe_scores_every_label_alike():
    """A constant answer to 90 : 30 is right in 75 % of the boxes, and in half of the labels."""
    blind = [
        sample._replace(features=np.zeros(4, np.float32)) for sample in samples_of("a.b", 90, True, labels=("x", "y"))
    ]
    results = probe([sample for n, sample in enumerate(blind) if sample.label == "x" or n % 3 == 0])
    assert results["knn-a.b"] == 50.0


def test_probe_keeps_groups_together():
    """Features that give away the patient and nothing else must not help."""
    rng = np.random.default_rng(0)
    prints = rng.normal(size=(24, 16)).astype(np.float32) * 10
    samples = [
        Sample(
            "class", "xy"[patient % 2], f"patient{patient}", prints[patient] + rng.normal(size=16).astype(np.float32)
        )
        for patient in range(24)
        for _ in range(10)
    ]
    found = probe(samples)
    assert found["linear-class"] < 75 and found["knn-class"] < 60  # with a patient on both sides, 97 and 68


def test_rare_labels_and_small_tasks_are_not_asked():
    rare = samples_of("class", 60, True)[:120] + samples_of("class", 3, True)[-3:]
    assert probe(rare)["linear-class"] > 97  # two labels are left
    assert probe(samples_of("class", 10, True)) == {}
    assert probe(samples_of("class", 60, True, labels=("only",))) == {}
    # Forty boxes, most of one patient: without these, fewer are left than there are neighbours to look at.
    many = [sample._replace(group="patient0") for sample in samples_of("class", 14, True, labels=("x", "y"))]
    assert probe(many + samples_of("class", 6, True, labels=("x", "y"))) == {}


@pytest.mark.parametrize(
    ("name", "supercategory", "expected"),
    [
        ("middle.thread.v_shaped", "middle", ("middle.thread", "v_shaped")),
        ("Bicon", "system", ("system", "Bicon")),
        ("Impacted Tooth", "", ("class", "Impacted Tooth")),
        ("tooth no. 5", "", ("class", "tooth no. 5")),
    ],
)
def test_questions(name, supercategory, expected):
    assert question(name, supercategory) == expected


def test_pooling_is_the_mean_inside_the_box():
    # The map's values are the column of the cell; cells are 16 pixels wide, their centres at 8, 24, 40, …
    features = torch.arange(6.0).expand(2, 4, 6)
    boxes = torch.tensor([[16.0, 0, 48, 64], [24, 16, 24.001, 32]])
    assert torch.allclose(pool_boxes(features, boxes), torch.tensor([[1.5, 1.5], [1.0, 1.0]]), atol=1e-3)


@pytest.fixture
def dataset():
    """Sixteen images with three boxes on the left and three on the right, which are of two systems."""
    name = "feature_probe"
    boxes = [("Bicon", [0, y, 100, 50]) for y in (0, 60, 120)] + [("ITI", [200, y, 100, 50]) for y in (0, 60, 120)]
    records = [
        {"file_name": f"{n}.png", "image_id": n, "height": 200, "width": 400, "patient_id": f"p{n}"}
        | {
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": ("Bicon", "ITI").index(label)}
                for label, box in boxes
            ]
        }
        for n in range(16)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["Bicon", "ITI"], supercategories=["system", "system"])
    yield name, records
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_evaluator_looks_at_the_boxes(dataset, tmp_path):
    """The image is resized to half; the features know left from right, and boxes in the wrong place would not."""
    name, records = dataset
    generator = torch.Generator().manual_seed(0)
    evaluator = FeatureEvaluator(name, tmp_path / "out")
    evaluator.reset()
    for record in records:
        features = torch.randn(8, 7, 13, generator=generator) * 0.1
        features[0, :, :4] += 1  # the left boxes end at 100 / 2 / 16 = 3.1 cells, the right ones begin at 6.25
        image = {key: record[key] for key in ("image_id", "height", "width")} | {"image": torch.zeros(1, 100, 200)}
        evaluator.process([image], [{"features": features}])
    results = evaluator.evaluate()
    assert results["features"]["linear-system"] == 100.0
    assert json.loads((tmp_path / "out/features.json").read_text()) == {"dataset": name, **results}


def probe_left_and_right(name, output_dir):
    """The probe of features that know left from right and nothing else."""
    evaluator = FeatureEvaluator(name, output_dir)
    evaluator.reset()
    generator = torch.Generator().manual_seed(0)
    for record in DatasetCatalog.get(name):
        features = torch.randn(8, 7, 13, generator=generator) * 0.1
        features[0, :, :5] += 1
        image = {key: record[key] for key in ("image_id", "height", "width")} | {"image": torch.zeros(1, 100, 200)}
        evaluator.process([image], [{"features": features}])
    return evaluator.evaluate()


@pytest.fixture
def plain():
    """A function that registers a dataset of somebody else's; it is forgotten after the test."""
    names = []

    def register(name, function, *args):
        function(name, *args)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_classes_of_a_plain_coco_dataset_are_one_task(plain, tmp_path):
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 100, "width": 200} for n in range(1, 31)],
        "categories": [{"id": 1, "name": "crown"}, {"id": 2, "name": "post"}],
        "annotations": [
            {"id": 2 * n + side, "image_id": n, "category_id": 1 + side, "iscrowd": 0, "area": 2500}
            | {"bbox": [side * 100, 0, 50, 50]}
            for n in range(1, 31)
            for side in (0, 1)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    name = plain("plain_coco", register_coco_instances, {}, str(tmp_path / "coco.json"), str(tmp_path))
    features = probe_left_and_right(name, tmp_path)["features"]
    assert set(features) == {"linear", "knn", "linear-class", "knn-class"}
    assert features["linear-class"] == 100.0


def test_images_without_annotations_are_passed_over(plain, tmp_path):
    records = [{"file_name": f"{n}.png", "image_id": n, "height": 100, "width": 200} for n in range(3)]
    name = plain("plain_images", DatasetCatalog.register, lambda: records)
    assert probe_left_and_right(name, tmp_path) == {}


def test_evaluator_without_enough_boxes_says_nothing(dataset, tmp_path, caplog):
    evaluator = FeatureEvaluator(dataset[0], tmp_path)
    evaluator.reset()
    assert evaluator.evaluate() == {}
    assert "features are not probed" in caplog.text


def test_boxes_of_a_patient_are_one_group(dataset, tmp_path):
    name, records = dataset
    for number, record in enumerate(records):
        record["patient_id"] = f"p{number // 2}"
    evaluator = FeatureEvaluator(name, tmp_path)
    evaluator.reset()
    for record in records:
        image = {key: record[key] for key in ("image_id", "height", "width")} | {"image": torch.zeros(1, 100, 200)}
        evaluator.process([image], [{"features": torch.zeros(8, 7, 13)}])
    assert len({sample.group for sample in evaluator._samples}) == len(records) / 2
