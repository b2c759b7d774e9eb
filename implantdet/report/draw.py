"""A folder of pictures: the radiographs of a dataset with their annotations and, beside them, what was detected."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from implantdet.data.idd import IMAGES, load_folds, load_idd, read_json
from implantdet.data.images import read_radiograph, to_float
from implantdet.data.problems import DataError
from implantdet.data.register import image_ids
from implantdet.report.overlay import detections_of, draw_panel, side_by_side


def draw_dataset(
    root: str | Path,
    out: str | Path,
    predictions: str | Path | None = None,
    part: str | None = None,
    min_score: float = 0.5,
    limit: int | None = None,
) -> list[Path]:
    """Write one PNG per image: the ground truth and, if there are predictions, those to its right.

    Args:
        root: dataset folder.
        out: folder of the pictures, created if it is missing.
        predictions: ``coco_instances_results.json`` of an evaluation.
        part: ``test``, ``val_fold0``, ``train_fold0``, …; None: every image.
        min_score: detections below it are left out.
        limit: number of pictures at most.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: a file is missing or malformed, or the predictions are of another dataset.
    """
    content = load_idd(root)
    wanted = {image["id"] for image in content["images"]} if part is None else image_ids(load_folds(root), part)
    images = [image for image in content["images"] if image["id"] in wanted][:limit]
    truth = _by_image(content["annotations"])
    detected = None if predictions is None else _by_image(_read_predictions(Path(predictions), content, min_score))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in tqdm(images, desc="draw", unit="image"):
        radiograph = to_float(read_radiograph(Path(root) / IMAGES / image["file_name"])).round().astype("uint8")
        boxes = detections_of(truth[image["id"]], content["categories"])
        panels = [draw_panel(radiograph, boxes, f"{image['file_name']} · ground truth")]
        if detected is not None:
            boxes = detections_of(detected[image["id"]], content["categories"])
            panels.append(draw_panel(radiograph, boxes, f"detected, score from {min_score:.0%}"))
        paths.append(out / f"{image['id']:06d}_{Path(image['file_name']).stem}.png")
        side_by_side(panels).save(paths[-1])
    return paths


def _by_image(records: list[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _read_predictions(path: Path, content: dict[str, Any], min_score: float) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; `python train_net.py --eval-only …` writes it to its OUTPUT_DIR")
    predictions = read_json(path)
    known = {image["id"] for image in content["images"]}, {category["id"] for category in content["categories"]}
    for prediction in predictions:
        if prediction["image_id"] not in known[0] or prediction["category_id"] not in known[1]:
            raise DataError(
                f"{path}: image {prediction['image_id']}, category {prediction['category_id']}: not in this dataset; "
                "expected the predictions of an evaluation on it"
            )
    return [prediction for prediction in predictions if prediction["score"] >= min_score]
