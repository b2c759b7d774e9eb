"""A finished detector of parts looked at closely: kinds of radiographs, axes, both stages, and where it fails.

    python benchmarks/best_detector.py RUN DATA

RUN: OUTPUT_DIR of a training on fold 0 of the phantom in DATA that ended with its second stage, as of implant_road.py
(WORK/parts_mde_seed0 and WORK/phantom). What it detected on the test patients is assembled anew; nothing is trained.
Writes ``results/best_detector.json``, the test images on which it fails worst, and implants as they were assembled.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import head_runs as runs
import yaml
from _curve import read_rows
from _record import RESULTS, write_result
from _resumed import commit_of
from head_curve import subset
from implant_road import ASSEMBLED, assembled_anew, tables
from PIL import Image

from implantdet.data.idd import load_idd, write_json
from implantdet.evaluation.coco_evaluator import without_nan
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.report.draw import draw_dataset

WORST = 32
TYPICAL = 6  # evenly spaced in the order of their errors
OF_THE_RUN = ("DATASETS.", "MODEL.WEIGHTS", "SEED", *(f"SOLVER.{key}_EPOCHS" for key in ("MAX", "WARMUP", "EVAL")))
EXAMPLE = 3  # of these, for the README


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


def write_sheet(pictures: Sequence[Path], path: Path, width: int) -> None:
    """Tile pictures in two columns, each of a width in pixels, row by row."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    heights = [image.height * width // image.width for image in images]
    rows = [max(heights[first : first + 2]) for first in range(0, len(images), 2)]
    sheet = Image.new("RGB", (min(2, len(images)) * width, sum(rows)))
    for place, (image, height) in enumerate(zip(images, heights, strict=True)):
        smaller = image.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(smaller, (place % 2 * width, sum(rows[: place // 2])))
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


def steps(run: Path) -> list[dict[str, Any]]:
    """What a training wrote of every 20th step; times are the median since the last. Iterations count from 1."""
    return [row | {"iteration": row["iteration"] + 1} for row in read_rows(run) if "time" in row]


def hours(run: Path) -> float:
    """How long the steps of a training took, without evaluations and checkpoints."""
    told = steps(run)
    return sum(step["time"] for step in told) / len(told) * told[-1]["iteration"] / 3600


def draw_worst(data: Path, run: Path, worst: Sequence[int]) -> None:
    """The test images of these ids with their annotations and detections, in this order."""
    for name in ("worst", "worst_data"):  # of a look before this one
        shutil.rmtree(run / name, ignore_errors=True)
    drawn = subset(data, run / "worst_data", test=list(worst))
    found = run / f"{data.name}_test" / "coco_instances_results.json"
    pictures = draw_dataset(drawn, run / "worst", found, part="test", min_score=0.3)
    pictures.sort(key=lambda path: worst.index(int(path.name.partition("_")[0])))
    write_sheet(pictures, RESULTS / "best_detector_worst.jpg", 700)


def draw_typical(data: Path, run: Path) -> list[int]:
    """The paper's figure 5: assembled implants beside the truth, from the smallest error to the largest."""
    content = json.loads((run / ASSEMBLED / "implants.json").read_text(encoding="utf-8"))
    images = sorted(content["images"], key=lambda image: image["error"])
    chosen = [images[math.floor((place + 0.5) / TYPICAL * len(images))] for place in range(TYPICAL)]
    write_json(run / "typical.json", content | {"images": chosen})
    shutil.rmtree(run / "typical", ignore_errors=True)
    pictures = draw_dataset(data, run / "typical", implants=run / "typical.json", worst=TYPICAL)
    pictures.reverse()
    write_sheet(pictures, RESULTS / "best_detector_implants.jpg", 1200)
    write_sheet(pictures[EXAMPLE : EXAMPLE + 1], RESULTS / "best_detector_example.jpg", 1600)
    return [image["image_id"] for image in chosen]


def measure(run: Path, data: Path) -> dict[str, Any]:
    """Evaluate and draw."""
    cfg = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config, *options = json.loads((run / "options.json").read_text(encoding="utf-8"))
    pairs = zip(options[::2], options[1::2], strict=True)
    results = assembled_anew(data, run)
    truth, found = runs.ground_truth(data, "test"), runs.detections(run / f"{data.name}_test")
    worst = worst_images(truth, found, WORST)
    draw_worst(data, run, worst)
    before = Path(cfg["MODEL"]["WEIGHTS"]).parent
    images = load_idd(data)["images"]
    return {
        "num_images": len(images),
        "num_train": runs.num_train(data),
        "image_passes": steps(run)[-1]["iteration"] * cfg["SOLVER"]["IMS_PER_BATCH"],
        "training_hours": hours(run),
        "pretraining_hours": hours(before) if (before / "metrics.json").is_file() else None,
        "training_commit": commit_of(run),
        "config": config,
        "options": [text for key, value in pairs if not key.startswith(OF_THE_RUN) for text in (key, value)],
        "metrics": without_nan(runs.metrics(truth, found)),
        "all": without_nan(coco_metrics(truth, found)),
        "by_modality": by_modality(data, truth, found),
        "axes": runs.axis_accuracy(truth, found),
        "implants": tables("parts", results),
        "worst_image_ids": worst,
        "worst_modalities": Counter(image["modality"] for image in images if image["id"] in worst),
        "typical_image_ids": draw_typical(data, run),
    }


def main() -> None:
    """Look at a run, then write ``results/best_detector.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("data", type=Path, metavar="DATA")
    args = parser.parse_args()
    write_result("best_detector", measure(args.run, args.data))


if __name__ == "__main__":
    main()
