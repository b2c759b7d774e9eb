"""The best part detector that a machine gives in its time, the curve against training images, and where it fails.

    python benchmarks/head_curve.py [--work DIR] [--images N] [--final-passes F] [--passes P] [--sizes …] [--seeds …]
                                    [--jobs J] [--config FILE] [KEY VALUE …]
    python benchmarks/head_curve.py --smoke

The final detector is trained on all training images of fold 0 for F image passes. The curve has growing subsets of
them, each for the same P image passes and with every seed. All are evaluated on the test set. The config has the best
setting of head_ablation.py. Pictures of the images on which the final detector fails worst go to WORK/worst.
An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import head_runs as runs
import numpy as np
from _record import RESULTS
from matplotlib.figure import Figure
from PIL import Image

from implantdet.data.idd import ANNOTATIONS, FOLDS, IMAGES, load_folds, write_json
from implantdet.evaluation.coco_evaluator import without_nan
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.report.draw import draw_dataset

WORST = 32
SHOWN, COLUMN = 8, 800  # pictures on the sheet, and the width of one in pixels


def subset(
    data: Path, folder: Path, num_train: int | None = None, test: list[int] | None = None, num_val: int | None = None
) -> Path:
    """A dataset folder with the same images, of which fewer are trained on or validated on, or others are tested on.

    Args:
        data: the whole dataset folder.
        folder: folder to make, unless it is there.
        num_train: training images of fold 0 that stay.
        test: ids of the images of the new test set.
        num_val: validation images of fold 0 that stay.
    """
    if not (folder / FOLDS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ANNOTATIONS, IMAGES):
            if not (folder / name).exists():
                (folder / name).symlink_to((data / name).resolve())
        folds = load_folds(data)
        if num_train is not None:
            kept = set([image_id for fold in folds["folds"][1:] for image_id in fold][:num_train])
            folds["folds"] = [folds["folds"][0], *([i for i in fold if i in kept] for fold in folds["folds"][1:])]
        if num_val is not None:
            folds["folds"] = [folds["folds"][0][:num_val], *folds["folds"][1:]]
        if test is not None:
            folds |= {"test": test, "folds": [[], [], [], []]}
        write_json(folder / FOLDS, folds)
    return folder


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
    """Tile pictures in two columns."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    height = max(image.height * COLUMN // image.width for image in images)
    sheet = Image.new("RGB", (2 * COLUMN, height * math.ceil(len(images) / 2)))
    for place, image in enumerate(images):
        smaller = image.resize((COLUMN, image.height * COLUMN // image.width), Image.Resampling.LANCZOS)
        sheet.paste(smaller, (place % 2 * COLUMN, place // 2 * height))
    sheet.save(path, quality=80)


def draw_curve(curve: dict[int, dict[str, Any]], final: dict[str, Any], path: Path) -> None:
    """AP50 against the number of training images: mean and range over the seeds, and the final detector as a star."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, label in (
        ("part_AP50", "parts"),
        ("rare_part_AP50", "rarest third of parts"),
        ("implant_AP50", "implants"),
    ):
        values = np.array([[metrics[key] for metrics in point["by_seed"].values()] for point in curve.values()])
        (line,) = axes.plot(list(curve), values.mean(axis=1), marker="o", label=label)
        axes.fill_between(list(curve), values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.2)
        axes.plot(max(curve), final["metrics"][key], marker="*", markersize=12, color=line.get_color())
    axes.set(xscale="log", xlabel="training images (★: the final detector)", ylabel="AP50, percent", ylim=(0, 100))
    axes.set_xticks(list(curve), [str(size) for size in curve])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, evaluate, and draw the worst."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train = runs.num_train(data)
    sizes = [size for size in arguments.sizes if size < num_train] + [num_train]
    smaller = {size: subset(data, arguments.work / f"train_{size}", num_train=size) for size in sizes}
    truth = runs.ground_truth(data, "test")

    def training(name: str, size: int, passes: int, seed: int) -> Path:
        length = runs.lengths(passes / size, num_checkpoints=8)
        options = (*length, "TEST.DETECTIONS_PER_IMAGE", 300, "SEED", seed, *arguments.options)
        run = runs.train(arguments.work / name, smaller[size], options, arguments.config)
        runs.detect(run, smaller[size], "test")
        return run

    def evaluated(run: Path) -> dict[str, Any]:
        found = runs.detections(run / "test")
        return {
            "metrics": runs.metrics(truth, found),
            "axes": runs.axis_accuracy(truth, found),
            "all": without_nan(coco_metrics(truth, found)),
        }

    # The final detector first: it is the one that counts, and the longest.
    final = partial(training, "final", num_train, arguments.final_passes, arguments.seeds[0])
    points = {
        (size, seed): partial(training, f"run_{size}_seed{seed}", size, arguments.passes, seed)
        for seed in arguments.seeds
        for size in reversed(sizes)
    }
    runs.in_parallel(arguments.jobs, [final, *points.values()])
    curve = {
        size: {"by_seed": {seed: evaluated(points[size, seed]())["metrics"] for seed in arguments.seeds}}
        for size in sizes
    }
    for size, smaller_size in zip(sizes[1:], sizes[:-1], strict=True):
        curve[size]["difference"] = runs.paired_differences(curve[size]["by_seed"], curve[smaller_size]["by_seed"])
    best = evaluated(final())
    worst = worst_images(truth, runs.detections(final() / "test"), WORST)
    drawn = subset(data, arguments.work / "worst_data", test=worst)
    results = final() / "test" / "coco_instances_results.json"
    pictures = draw_dataset(drawn, arguments.work / "worst", results, part="test", min_score=0.3)
    if not arguments.smoke:
        rank = {image_id: place for place, image_id in enumerate(worst)}
        pictures.sort(key=lambda path: rank[int(path.name.partition("_")[0])])
        write_sheet(pictures[:SHOWN], RESULTS / "head_curve_worst.jpg")
        draw_curve(curve, best, RESULTS / "head_curve.png")
    return {
        "num_images": arguments.images,
        "config": arguments.config,
        "options": arguments.options,
        "final": {"num_train": num_train, "image_passes": arguments.final_passes, **best},
        "worst_image_ids": worst,
        "image_passes": arguments.passes,
        "by_training_images": curve,
    }


def main() -> None:
    """Train what is missing, then write the curve."""
    parser = runs.parser_of(__doc__, "head_curve", images=5572)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000], help="subsets; the whole set comes last")
    parser.add_argument("--final-passes", type=int, default=36000, help="images that the final detector sees")
    parser.add_argument("--passes", type=int, default=4000, help="images that each training of the curve sees")
    parser.add_argument("--config", default="configs/idd_tiny.yaml")
    runs.report("head_curve", parser.parse_args(), measure, sizes=[8], passes=24, final_passes=24)


if __name__ == "__main__":
    main()
