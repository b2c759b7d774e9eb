"""A folder of pictures: the radiographs of a dataset with their annotations and, beside them, what was found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from implantdet.data.idd import IMAGES, load_folds, load_idd, read_json
from implantdet.data.images import read_radiograph, to_float
from implantdet.data.problems import DataError
from implantdet.data.register import image_ids
from implantdet.report.close_ups import add_close_ups
from implantdet.report.implant_overlay import draw_implants, sure_enough
from implantdet.report.overlay import detections_of, draw_panel, save_picture, side_by_side

_DETECTION = {"image_id", "category_id", "bbox", "score"}
EVALUATE = "`python train_net.py --eval-only …` writes it to its OUTPUT_DIR"


def draw_dataset(
    root: str | Path,
    out: str | Path,
    predictions: str | Path | None = None,
    part: str | None = None,
    min_score: float = 0.5,
    limit: int | None = None,
    implants: str | Path | None = None,
    worst: int | None = None,
) -> list[Path]:
    """Write one PNG per image: the ground truth and to its right, where they are given, detections and implants.

    Args:
        root: dataset folder.
        out: folder of the pictures, created if it is missing.
        predictions: ``coco_instances_results.json`` of an evaluation.
        part: ``test``, ``val_fold0``, ``train_fold0``, …; None: every image, or those of ``implants``, or those with
            a detection in ``predictions``: others were perhaps not looked at.
        min_score: detections and implants below it are left out.
        limit: number of pictures at most.
        implants: ``implants.json`` of an evaluation.
        worst: draw this many images, those with the largest errors first; needs ``implants``.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: a file is missing or malformed, or was made for another dataset.
    """
    content = load_idd(root)
    truth = _by_image(content["annotations"])
    predicted = None if predictions is None else _by_image(_read_predictions(Path(predictions), content))
    assembled = None if implants is None else _read_implants(Path(implants), content)
    wanted = {image["id"] for image in content["images"]} if part is None else image_ids(load_folds(root), part)
    images = [image for image in content["images"] if image["id"] in wanted]
    if assembled is not None:
        images = [image for image in images if image["id"] in assembled]
    elif predicted is not None and part is None:
        images = [image for image in images if image["id"] in predicted]
    if worst is not None:
        if assembled is None:
            raise DataError("the worst images are known from implants.json only: give it with --implants")
        images = sorted(images, key=lambda image: -assembled[image["id"]]["error"])[:worst]
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, image in enumerate(tqdm(images[:limit], desc="draw", unit="image"), start=1):
        radiograph = to_float(read_radiograph(Path(root) / IMAGES / image["file_name"])).round().astype("uint8")
        boxes = detections_of(truth[image["id"]], content["categories"])
        panels = [draw_panel(radiograph, boxes, f"{image['file_name']} · ground truth")]
        if predicted is not None:
            sure = [detection for detection in predicted[image["id"]] if detection["score"] >= min_score]
            boxes = detections_of(sure, content["categories"])
            panels.append(draw_panel(radiograph, boxes, f"detected, score from {min_score:.0%}"))
        shown: list[dict[str, Any]] = []
        if assembled is not None:
            found = assembled[image["id"]]
            shown, title = sure_enough(found["implants"], min_score)
            panels.append(draw_implants(radiograph, shown, f"{title} · error of all {found['error']:.2f}"))
        picture = add_close_ups(side_by_side(panels), radiograph, shown)
        rank = "" if worst is None else f"worst{place:03d}_"
        paths.append(out / f"{rank}{image['id']:06d}_{Path(image['file_name']).stem}.png")
        save_picture(picture, paths[-1])
    return paths


def _by_image(records: list[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _read_predictions(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    predictions = _read(path)
    rows = predictions if isinstance(predictions, list) else [None]
    if not all(isinstance(row, dict) and row.keys() >= _DETECTION for row in rows):
        raise DataError(
            f"{path}: expected a list of detections with {', '.join(sorted(_DETECTION))}; give "
            "coco_instances_results.json of an evaluation"
        )
    known = {image["id"] for image in content["images"]}, {category["id"] for category in content["categories"]}
    for prediction in predictions:
        if prediction["image_id"] not in known[0] or prediction["category_id"] not in known[1]:
            raise DataError(
                f"{path}: image {prediction['image_id']}, category {prediction['category_id']}: not in this dataset; "
                "expected the predictions of an evaluation on it"
            )
    return predictions


def _read_implants(path: Path, content: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Image id → what ``implants.json`` says of it."""
    written = _read(path)
    if not isinstance(written, dict) or not isinstance(written.get("images"), list):
        raise DataError(f"{path}: expected an object with the list 'images'; give implants.json of an evaluation")
    known = {image["id"] for image in content["images"]}
    for image in written["images"]:
        if "image_id" not in image:
            raise DataError(
                f"{path}: an implants.json of `implantdet predict`, which draws its own pictures; expected one of an "
                "evaluation on this dataset"
            )
        if any("number" not in implant for implant in image["implants"]):
            raise DataError(f"{path}: implants without a number, as earlier versions wrote them; {EVALUATE}")
        if image["image_id"] not in known:
            raise DataError(
                f"{path}: image {image['image_id']}: not in this dataset; expected the implants of an evaluation on it"
            )
    return {image["image_id"]: image for image in written["images"]}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {EVALUATE}")
    return read_json(path)
