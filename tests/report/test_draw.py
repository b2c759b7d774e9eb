import json

import numpy as np
import pytest
from PIL import Image

from implantdet.data.problems import DataError
from implantdet.report.draw import draw_dataset
from implantdet.report.overlay import HEIGHT, LINE
from implantdet.taxonomy import COLOURS


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "idd"
    (root / "images/a").mkdir(parents=True)
    for name in ("a/one.png", "two.png"):
        Image.fromarray(np.full((40, 60), 90, np.uint8)).save(root / "images" / name)
    box = {"category_id": 1, "bbox": [5, 5, 10, 20], "area": 200, "iscrowd": 0}
    content = {
        "images": [
            {"id": 1, "file_name": "a/one.png", "width": 60, "height": 40},
            {"id": 2, "file_name": "two.png", "width": 60, "height": 40},
        ],
        "annotations": [{"id": 1, "image_id": 1, **box}],
        "categories": [{"id": 1, "name": "Bicon", "supercategory": "system"}],
    }
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    folds = {"seed": 0, "group_by": "image", "test": [2], "folds": [[1], [], [], []]}
    (root / "folds.json").write_text(json.dumps(folds), encoding="utf-8")
    return root


def write_predictions(tmp_path, **changes):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps([{"image_id": 2, "category_id": 1, "bbox": [9, 9, 9, 9], "score": 0.8} | changes]))
    return path


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def has_box(path):
    radiographs = pixels(path)[2 * LINE :]  # below the titles, where the key to the colours stands
    return bool((radiographs == COLOURS["system"]).all(-1).any())


def test_ground_truth_of_every_image(dataset, tmp_path):
    paths = draw_dataset(dataset, tmp_path / "out")
    assert [path.name for path in paths] == ["000001_one.png", "000002_two.png"]
    assert [has_box(path) for path in paths] == [True, False]


def test_predictions_stand_beside_the_ground_truth(dataset, tmp_path):
    alone = draw_dataset(dataset, tmp_path / "alone", part="test")
    both = draw_dataset(dataset, tmp_path / "both", write_predictions(tmp_path), part="test")
    assert len(alone) == len(both) == 1
    assert pixels(both[0]).shape[1] == 2 * pixels(alone[0]).shape[1]
    assert has_box(both[0])


def test_faint_predictions_are_left_out_and_the_limit_holds(dataset, tmp_path):
    (path,) = draw_dataset(dataset, tmp_path / "out", write_predictions(tmp_path), min_score=0.9)
    assert path.name == "000002_two.png", "an image without predictions was perhaps not looked at"
    assert not has_box(path)
    assert len(draw_dataset(dataset, tmp_path / "few", limit=1)) == 1


@pytest.mark.parametrize("changes", [{"image_id": 7}, {"category_id": 7}])
def test_predictions_of_another_dataset_are_refused(dataset, tmp_path, changes):
    with pytest.raises(DataError, match=r"predictions\.json: .*7.*: not in this dataset"):
        draw_dataset(dataset, tmp_path / "out", write_predictions(tmp_path, **changes))


@pytest.mark.parametrize(
    "content", [{"bbox": {"AP": 1}}, {"images": []}, [1], [{"image_id": 2, "category_id": 1}]], ids=str
)
def test_files_that_hold_no_detections_are_refused(dataset, tmp_path, content):
    """results.json, implants.json and annotations lie beside them."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json: expected a list of detections .*coco_instances_results\.json"):
        draw_dataset(dataset, tmp_path / "out", path)


def test_missing_predictions_say_where_they_come_from(dataset, tmp_path):
    with pytest.raises(DataError, match=r"no such file; `python train_net\.py --eval-only"):
        draw_dataset(dataset, tmp_path / "out", tmp_path / "nothing.json")


def write_implants(tmp_path, *images):
    """``implants.json`` with (image_id, error) and one implant per image."""
    implant = {
        "number": 1,
        "box": [9, 9, 18, 18],
        "score": 0.8,
        "axis": None,
        "length_mm": None,
        "parts": [],
        "ranking": None,
    }
    records = [{"image_id": image_id, "error": error, "implants": [implant]} for image_id, error in images]
    path = tmp_path / "implants.json"
    path.write_text(json.dumps({"dataset": "idd_test", "images": records}), encoding="utf-8")
    return path


def test_implants_stand_beside_the_ground_truth_of_their_images(dataset, tmp_path):
    paths = draw_dataset(dataset, tmp_path / "out", implants=write_implants(tmp_path, (2, 0.1)))
    assert [path.name for path in paths] == ["000002_two.png"]  # the other image was not evaluated
    assert has_box(paths[0])
    faint = draw_dataset(dataset, tmp_path / "faint", implants=write_implants(tmp_path, (2, 0.1)), min_score=0.9)
    assert not has_box(faint[0])


def test_drawn_implants_that_are_small_are_enlarged_under_the_picture(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("implantdet.report.close_ups.SMALL", 10_000)
    implants = write_implants(tmp_path, (2, 0.1))
    heights = []
    for min_score in (0.9, 0.5):  # without the implant, and with it
        (path,) = draw_dataset(dataset, tmp_path / str(min_score), implants=implants, min_score=min_score)
        heights.append(pixels(path).shape[0])
    assert heights[0] == HEIGHT + 2 * LINE < heights[1]


def test_the_worst_come_first(dataset, tmp_path):
    implants = write_implants(tmp_path, (1, 0.2), (2, 1.7))
    names = [path.name for path in draw_dataset(dataset, tmp_path / "all", implants=implants, worst=5)]
    assert names == ["worst001_000002_two.png", "worst002_000001_one.png"]
    assert len(draw_dataset(dataset, tmp_path / "one", implants=implants, worst=1)) == 1


def test_the_worst_without_implants_is_an_error(dataset, tmp_path):
    with pytest.raises(DataError, match="give it with --implants"):
        draw_dataset(dataset, tmp_path / "out", worst=3)


def test_implants_of_another_dataset_are_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"implants\.json: image 7: not in this dataset"):
        draw_dataset(dataset, tmp_path / "out", implants=write_implants(tmp_path, (7, 0.2)))
    foreign = tmp_path / "predicted.json"
    foreign.write_text('{"model": "run", "images": [{"file_name": "one.png", "implants": []}]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"predicted\.json: an implants\.json of `implantdet predict`"):
        draw_dataset(dataset, tmp_path / "out", implants=foreign)
    with pytest.raises(DataError, match=r"predictions\.json: expected an object with the list 'images'"):
        draw_dataset(dataset, tmp_path / "out", implants=write_predictions(tmp_path))
