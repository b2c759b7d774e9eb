"""The best detector of parts that a CPU gives in its time, both stages on the test patients, and where it fails.

    python benchmarks/best_detector.py [--work DIR] [--images N] [--passes P] [--processes J] [--config FILE]
                                       [KEY VALUE …]
    python benchmarks/best_detector.py --smoke

It is trained on the training images of fold 0 for P image passes; its second stage is calibrated on the validation
fold. Pictures of the test images on which it fails worst go to WORK/worst. An interrupted run goes on when it is
started again with the same --work.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import head_runs as runs
from _record import RESULTS
from _resumed import commit_of, train_once
from head_curve import subset
from implant_road import of_dataset, tables
from PIL import Image

from implantdet.data.idd import load_idd
from implantdet.evaluation.coco_evaluator import without_nan
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.report.draw import draw_dataset

WORST = 32
COLUMN = 800  # width of a picture on the sheet, in pixels


def worst_images(truth: dict[str, Any], found: list[dict[str, Any]], number: int) -> list[int]:
    """Ids of the annotated images with the lowest AP50 of their own, lowest first."""
    scores = {}
    for image in truth["images"]:
        own = [
            [record for record in records if record["image_id"] == image["id"]]
            for records in (truth["annotations"], found)
        ]
        if own[0]:
            scores[image["id"]] = coco_metrics(truth | {"images": [image], "annotations": own[0]}, own[1])["AP50"]
    return sorted(scores, key=lambda image_id: scores[image_id])[:number]


def write_sheet(pictures: list[Path], path: Path) -> None:
    """Tile pictures in two columns, row by row."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    height = max(image.height * COLUMN // image.width for image in images)
    sheet = Image.new("RGB", (2 * COLUMN, height * math.ceil(len(images) / 2)))
    for place, image in enumerate(images):
        smaller = image.resize((COLUMN, image.height * COLUMN // image.width), Image.Resampling.LANCZOS)
        sheet.paste(smaller, (place % 2 * COLUMN, place // 2 * height))
    sheet.save(path, quality=80)


def by_modality(data: Path, truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The metrics of each kind of radiograph alone, over the categories that all kinds have: so they compare."""
    modalities = {image["id"]: image["modality"] for image in load_idd(data)["images"]}
    answers = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    shown: dict[str, set[int]] = {}
    for annotation in answers:
        shown.setdefault(modalities[annotation["image_id"]], set()).add(annotation["category_id"])
    common = set.intersection(*shown.values())
    # What is not trained on is in no mean.
    categories = [c | {"num_train": c["num_train"] if c["id"] in common else 0} for c in truth["categories"]]
    told = {}
    for modality in sorted(shown):
        images = [image for image in truth["images"] if modalities[image["id"]] == modality]
        ids = {image["id"] for image in images}
        own = [[record for record in records if record["image_id"] in ids] for records in (truth["annotations"], found)]
        alone = truth | {"images": images, "annotations": own[0], "categories": categories}
        metrics = without_nan(runs.metrics(alone, own[1]))
        told[modality] = {"num_images": len(images), "num_categories": len(common), **metrics}
    return told


def hours(run: Path) -> float:
    """How long the steps of a training took, without evaluations and checkpoints."""
    lines = (run / "metrics.json").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "time" in line]  # of every 20th step: the median since the last
    last = steps[-1]["iteration"] + 1
    return sum(step["time"] for step in steps) / len(steps) * last / 3600


def pretraining_hours(options: list[str]) -> float | None:
    """How long the weights that the training starts with were trained; None where nobody knows."""
    given = dict(zip(options[::2], options[1::2], strict=True)).get("MODEL.WEIGHTS", "")
    run = Path(given).parent
    return hours(run) if (run / "metrics.json").is_file() else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, evaluate, and draw the worst."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train, run = runs.num_train(data), arguments.work / "final"
    epochs = arguments.passes / num_train
    options = (
        *of_dataset(data, "val_fold0"),
        *runs.lengths(epochs, num_checkpoints=1),
        *("MODEL.MASK_ON", False, "SEED", 0, *arguments.options),
    )
    flags = ("--resume", "--num-gpus", arguments.processes)
    train_once(run, arguments.config, options, *flags)
    tested = run / f"{data.name}_test"
    results = json.loads((tested / "results.json").read_text(encoding="utf-8"))
    truth, found = runs.ground_truth(data, "test"), runs.detections(tested)
    worst = worst_images(truth, found, WORST)
    for name in ("worst", "worst_data"):  # of an evaluation before this one
        shutil.rmtree(arguments.work / name, ignore_errors=True)
    drawn = subset(data, arguments.work / "worst_data", test=worst)
    pictures = draw_dataset(
        drawn, arguments.work / "worst", tested / "coco_instances_results.json", part="test", min_score=0.3
    )
    if not arguments.smoke:
        rank = {image_id: place for place, image_id in enumerate(worst)}
        pictures.sort(key=lambda path: rank[int(path.name.partition("_")[0])])
        write_sheet(pictures, RESULTS / "best_detector_worst.jpg")
    return {
        "num_images": arguments.images,
        "num_train": num_train,
        "image_passes": arguments.passes,
        "processes": arguments.processes,
        "training_hours": hours(run),
        "pretraining_hours": pretraining_hours(arguments.options),
        "training_commit": commit_of(run),
        "config": arguments.config,
        "options": arguments.options,
        "metrics": without_nan(runs.metrics(truth, found)),
        "all": without_nan(coco_metrics(truth, found)),
        "by_modality": by_modality(data, truth, found),
        "axes": runs.axis_accuracy(truth, found),
        "implants": tables("parts", results),
        "worst_image_ids": worst,
        "worst_modalities": Counter(image["modality"] for image in load_idd(drawn)["images"] if image["id"] in worst),
    }


def main() -> None:
    """Train what is missing, then write ``results/best_detector.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/best_detector"), help="data and run")
    parser.add_argument("--images", type=int, default=5572, help="size of the phantom")
    parser.add_argument("--passes", type=int, default=36000, help="images that the detector sees")
    parser.add_argument("--processes", type=int, default=2, help="of the training, on the CPU")
    parser.add_argument("--config", default="configs/idd_tiny.yaml")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … of the training")
    smoke = {"passes": 24, "processes": 1, "config": runs.CONFIG, "options": [*runs.SMOKE, *runs.HEAD]}
    runs.report("best_detector", parser.parse_args(), measure, **smoke)


if __name__ == "__main__":
    main()
