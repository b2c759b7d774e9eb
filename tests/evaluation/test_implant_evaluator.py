"""Both stages on a registered dataset: perfect detections, lost ones, none, and several processes."""

import json
import math

import detectron2.evaluation
import numpy as np
import pytest
import torch
from conftest import write_idd
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from torch import nn

from implantdet.assembly.assembler import PartAssembler
from implantdet.data.register import register_idd
from implantdet.evaluation import implant_evaluator
from implantdet.evaluation.coco_evaluator import COCOEvaluator
from implantdet.evaluation.implant_evaluator import ImplantEvaluator
from implantdet.evaluation.stopwatch import TimedModel

NAME = "evaluated"


@pytest.fixture(scope="module")
def assembler(tmp_path_factory):
    """Fitted and calibrated on 36 and 12 implants of three thirds with one axis each."""
    register_idd(write_idd(tmp_path_factory.mktemp("implants") / "idd", num_images=40, masks=False), NAME)
    training, validation = (DatasetCatalog.get(f"{NAME}_{part}_fold0") for part in ("train", "val"))
    fitted = PartAssembler(MetadataCatalog.get(f"{NAME}_train_fold0").thing_classes).fit(training)
    return fitted.calibrate(validation, [perfect(record) for record in validation])


def perfect(record, keep=lambda index: True, score=0.95):
    """What a model would say that has seen the ground truth; ``keep`` chooses annotations by their index."""
    chosen = [annotation for index, annotation in enumerate(record["annotations"]) if keep(index)]
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in chosen]
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.full((len(chosen),), score),
        pred_classes=torch.tensor([item["category_id"] for item in chosen], dtype=torch.int64),
    )


def evaluate(assembler, folder, **kwargs):
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", folder), assembler)
    for _ in range(2):  # the second round starts anew
        evaluator.reset()
        for record in DatasetCatalog.get(f"{NAME}_test"):
            evaluator.process([record], [{"instances": perfect(record, **kwargs)}])
    return evaluator.evaluate()


def read(folder, name="results.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_perfect_detections_become_perfect_implants(assembler, tmp_path, caplog):
    with caplog.at_level("INFO"):
        flat = evaluate(assembler, tmp_path)
    assert flat["bbox"]["AP"] == pytest.approx(100)
    assert flat["implants"]["stage2_AP"] == pytest.approx(100)
    written = read(tmp_path)
    implants = written["implants"]
    assert written["bbox"]["AP"] == pytest.approx(100)
    assert implants["num_implants"] == 12
    figures = implants["parts"]
    assert figures.pop("num_categories") == 3
    assert figures == dict.fromkeys(("AP", "AP50", "AP75", "AR100"), pytest.approx(100))
    assert implants["grouping"] == {"exact": 1, "num_implants": 12}
    for stage in ("stage1", "stage2"):
        for kind in ("by_system", "any_system"):
            assert implants[stage][kind]["AP"] == pytest.approx(100), (stage, kind)
        assert implants[stage]["fps"] is None  # no model, no time
    assert implants["detections"]["D-ECE"] == pytest.approx(5, abs=1e-4)
    assert implants["axes"]["coronal.level"] == {
        "values": ["bone", "not assessable"],
        "confusion": [[12, 0], [0, 0]],
        "accuracy": 1,
        "balanced_accuracy": 1,
    }
    assert (implants["systems"]["top1"], implants["systems"]["num_implants"]) == (1, 12)
    assert sum(map(sum, implants["system_confusion"]["confusion"])) == 12
    nothing = {
        "recall": None,
        "precision": None,
        "edges_within_95": None,
        "num_missed": 0,
        "num_inferred": 0,
        "num_judged": 0,
    }
    assert implants["inferred"] == nothing
    for line in (
        "| detected whole | by system",
        "| assembled      | any system",
        "| grouped exactly         |   1.000",
    ):
        assert line in caplog.text


def test_implants_of_a_patient_are_one_group(assembler, tmp_path, monkeypatch):
    records = [record | {"patient_id": f"p{k // 2}"} for k, record in enumerate(DatasetCatalog.get(f"{NAME}_test"))]
    told = []
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: records)
    measure = implant_evaluator.ranking_metrics
    monkeypatch.setattr(implant_evaluator, "ranking_metrics", lambda *args: told.append(args) or measure(*args))
    evaluate(assembler, tmp_path)
    ((matched, groups),) = told
    assert len(matched) == len(groups) == 12
    patients = [
        record["patient_id"] for record in records for _ in {item["implant_id"] for item in record["annotations"]}
    ]
    together = np.equal.outer(groups, groups)
    assert together.sum() > 12
    assert (together == np.equal.outer(patients, patients)).all()


def test_implants_can_be_drawn_from_their_file(assembler, tmp_path):
    evaluate(assembler, tmp_path)
    images = read(tmp_path, "implants.json")["images"]
    assert [image["image_id"] for image in images] == [r["image_id"] for r in DatasetCatalog.get(f"{NAME}_test")]
    assert sum(len(image["implants"]) for image in images) == 12
    assert all(image["error"] < 0.01 for image in images)


def test_sizes_in_millimetres_come_from_either_scale(assembler, tmp_path):
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path), assembler)
    scales = [{}, {"mm_per_pixel": 0.1}, {"mm_per_pixel_matrix": [[0.1, 0.0], [0.0, 0.2]]}]
    records = DatasetCatalog.get(f"{NAME}_test")[:3]
    for record, scale in zip(records, scales, strict=True):
        evaluator.process([record | scale], [{"instances": perfect(record)}])
    evaluator.evaluate()
    unknown, square, tall = (image["implants"][0] for image in read(tmp_path, "implants.json")["images"])
    assert (unknown["length_mm"], unknown["width_mm"]) == (None, None)
    assert (square["length_mm"], square["width_mm"]) == pytest.approx((square["length"] / 10, square["width"] / 10))
    assert (tall["length_mm"], tall["width_mm"]) == pytest.approx((tall["length"] / 5, tall["width"] / 10), rel=1e-3)


def test_parts_alone_are_assembled_and_lost_thirds_inferred(assembler, tmp_path):
    """Annotations of an implant: three thirds, then the whole. Without wholes, and without every other apex."""
    evaluate(assembler, tmp_path, keep=lambda index: index % 4 != 3 and index % 8 != 2, score=1.0)
    implants = read(tmp_path)["implants"]
    assert implants["stage1"]["any_system"]["AP"] == 0
    assert implants["stage2"]["any_system"]["AP50"] == pytest.approx(100)
    assert implants["grouping"]["exact"] == 1
    assert implants["inferred"]["num_missed"] == 8  # the first implant of each of the eight images
    assert implants["inferred"]["recall"] >= 0.75
    assert implants["inferred"]["num_inferred"] == 8
    assert implants["axes"]["apical.apex"]["confusion"] == [[4, 8], [0, 0]]


def test_a_model_that_finds_nothing(assembler, tmp_path):
    flat = evaluate(assembler, tmp_path, keep=lambda index: False)
    assert flat["implants"]["stage1_AP"] == flat["implants"]["stage2_AP"] == 0
    assert math.isnan(flat["implants"]["exact_grouping"])
    implants = read(tmp_path)["implants"]  # valid JSON, without NaN
    assert implants["grouping"]["exact"] is None
    nothing = {
        "recall": 0,
        "precision": None,
        "edges_within_95": None,
        "num_missed": 36,
        "num_inferred": 0,
        "num_judged": 0,
    }
    assert implants["inferred"] == nothing
    assert [row[-1] for row in implants["system_confusion"]["confusion"]] == [0, 6, 6, 0, 0]  # all are missed


def test_processes_put_their_implants_together(assembler, tmp_path, monkeypatch):
    evaluate(assembler, tmp_path / "alone", keep=lambda index: index % 5)
    records = DatasetCatalog.get(f"{NAME}_test")
    here, there = (ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path / "two"), assembler) for _ in range(2))
    for evaluator, mine in ((there, records[::2]), (here, records[1::2])):
        outputs = [{"instances": perfect(record, keep=lambda index: index % 5)} for record in mine]
        evaluator.process(mine, outputs)
    of_others = iter([there._parts._detections, there._found])
    monkeypatch.setattr(comm, "gather", lambda mine, dst: [mine, next(of_others)])
    here.evaluate()
    for name in ("results.json", "implants.json"):
        assert read(tmp_path / "two", name) == read(tmp_path / "alone", name)


def test_other_processes_return_nothing(assembler, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluate(assembler, tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_a_new_round_knows_nothing_of_the_last_and_images_that_were_not_looked_at_do_not_count(assembler, tmp_path):
    records = DatasetCatalog.get(f"{NAME}_test")
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path), assembler)
    evaluator.process(records, [{"instances": perfect(record)} for record in records])
    evaluator.reset()
    evaluator.process(records[:1], [{"instances": perfect(records[0])}])
    evaluator.evaluate()
    assert read(tmp_path)["implants"]["num_implants"] == len(records[0]["annotations"]) / 4 < 12


class Oracle(nn.Module):
    def forward(self, inputs):
        return [{"instances": perfect(record)} for record in inputs]


def test_images_per_second_of_both_stages(assembler, tmp_path):
    detector = TimedModel(Oracle())
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path), assembler, detector)
    records = DatasetCatalog.get(f"{NAME}_test")
    for batch in (records[:4], records[4:]):
        outputs = detector(batch)
        assert detector.seconds > 0
        detector.seconds = 0.5  # as if each had taken half a second
        evaluator.process(batch, outputs)
    flat = evaluator.evaluate()["implants"]
    assert flat["stage1_fps"] == pytest.approx(8)
    assert 0 < flat["stage2_fps"] < flat["stage1_fps"]


def test_another_evaluator_of_parts_is_refused(assembler, tmp_path):
    theirs = detectron2.evaluation.COCOEvaluator(f"{NAME}_test", output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"parts: found detectron2\.evaluation.*expected implantdet\.evaluation"):
        ImplantEvaluator(theirs, assembler)
    with pytest.raises(ValueError, match=r"of \('segm',\), expected .* with the task bbox"):
        ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path, ("segm",)), assembler)


def test_no_image_is_no_error(assembler, tmp_path):
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path), assembler)
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["implants"]["exact_grouping"])
    assert read(tmp_path)["implants"]["num_implants"] == 0


def test_detections_that_are_no_numbers_are_passed_over(assembler, tmp_path):
    evaluator = ImplantEvaluator(COCOEvaluator(f"{NAME}_test", tmp_path), assembler)
    for record in DatasetCatalog.get(f"{NAME}_test"):
        found = Instances.cat([perfect(record), perfect(record), perfect(record)])
        found.scores[: len(found) // 3] = float("nan")
        found.pred_boxes.tensor[len(found) // 3 : 2 * len(found) // 3] = float("inf")
        evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
