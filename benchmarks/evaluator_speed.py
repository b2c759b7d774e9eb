"""Speed of our evaluator against pycocotools, on the same generated boxes and detections.

    python benchmarks/evaluator_speed.py

Measured from Python records to the twelve numbers: reading them in, matching, accumulating, summarising. The two take
turns, so that a slower spell of the machine meets both. Fails if the average precisions differ in eight digits.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _record import write_result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.taxonomy import default_taxonomy

SEED = 0
SIZE = 416  # pixels
NUM_IMAGES = 5572  # of the paper's data set
NUM_BOXES = 24_876
DETECTIONS_PER_BOX = 3


def generate(num_images: int, num_boxes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO ground truth with the taxonomy's categories, and three jittered detections per box."""
    rng = np.random.default_rng(SEED)
    categories = default_taxonomy().coco_categories()
    sides = rng.uniform(10, 200, (num_boxes, 2))
    boxes = np.hstack([rng.uniform(0, SIZE - sides), sides])
    image_ids = rng.integers(1, num_images + 1, num_boxes).tolist()
    category_ids = rng.integers(1, len(categories) + 1, num_boxes).tolist()
    annotations = [
        {
            "id": index + 1,
            "image_id": image_ids[index],
            "category_id": category_ids[index],
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": 0,
        }
        for index, box in enumerate(boxes)
    ]
    owners = np.repeat(np.arange(num_boxes), DETECTIONS_PER_BOX)
    jittered = np.maximum(boxes[owners] + rng.normal(0, 6, (len(owners), 4)), [-np.inf, -np.inf, 1, 1])
    detections = [
        {
            "image_id": image_ids[owner],
            "category_id": category_ids[owner],
            "bbox": box.tolist(),
            "score": float(score),
        }
        for owner, box, score in zip(owners, jittered, rng.random(len(owners)), strict=True)
    ]
    images = [{"id": image_id, "width": SIZE, "height": SIZE} for image_id in range(1, num_images + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def by_pycocotools(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[float]:
    """AP, AP50, AP75 and the others in COCO's order, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco_gt = COCO()
        coco_gt.dataset = ground_truth
        coco_gt.createIndex()
        evaluation = COCOeval(coco_gt, coco_gt.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats]


def by_implantdet(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[float]:
    """The same by our evaluator."""
    return [value for value in coco_metrics(ground_truth, detections).values() if isinstance(value, float)]


def timed(function: Callable[..., list[float]], *arguments: Any) -> tuple[float, list[float]]:
    """Seconds and result; the arguments are copied before, since pycocotools writes into them."""
    arguments = copy.deepcopy(arguments)
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Measure, print and write ``results/evaluator_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each evaluator")
    rounds = parser.parse_args().rounds
    ground_truth, detections = generate(NUM_IMAGES, NUM_BOXES)
    timed(by_implantdet, ground_truth, detections)  # starts its threads
    seconds: dict[str, list[float]] = {"implantdet": [], "pycocotools": []}
    for _ in range(rounds):
        ours, found = timed(by_implantdet, ground_truth, detections)
        theirs, expected = timed(by_pycocotools, ground_truth, detections)
        seconds["implantdet"].append(ours)
        seconds["pycocotools"].append(theirs)
    difference = float(np.abs(np.subtract(found, expected)).max())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    speedup = medians["pycocotools"] / medians["implantdet"]
    print(f"pycocotools {medians['pycocotools']:.2f} s, implantdet {medians['implantdet']:.3f} s: {speedup:.0f} times")
    write_result(
        "evaluator_speed",
        {
            "num_images": NUM_IMAGES,
            "num_boxes": NUM_BOXES,
            "num_detections": len(detections),
            "num_categories": len(ground_truth["categories"]),
            "seed": SEED,
            "seconds": seconds,
            "median_seconds": medians,
            "speedup": speedup,
            "AP_percent": found[0],
            "largest_difference_of_12_metrics_percent": difference,
        },
    )
    if difference > 1e-8:
        sys.exit(f"the evaluators differ by {difference} percent")


if __name__ == "__main__":
    main()
