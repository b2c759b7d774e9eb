"""The best part detector that a machine gives in its time, against the number of training images; and where it fails.

    python benchmarks/head_curve.py [--work DIR] [--images N] [--passes P] [--jobs J] [--config FILE] [KEY VALUE …]
    python benchmarks/head_curve.py --smoke

Trains on growing subsets of the training images of fold 0, each for the same number of image passes, and evaluates on
the test set. The options are those of the best setting of head_ablation.py. Pictures of the images on which the last
model fails worst go to WORK/worst. An interrupted run goes on when it is started again with the same --work.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import head_runs as runs
from _record import RESULTS, write_result
from matplotlib.figure import Figure
from PIL import Image

from implantdet.data.idd import ANNOTATIONS, FOLDS, IMAGES, load_folds, write_json
from implantdet.evaluation.coco_evaluator import without_nan
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.report.draw import draw_dataset

WORST = 32
SHOWN, COLUMN = 8, 800  # pictures on the sheet, and the width of one in pixels


def subset(data: Path, folder: Path, num_train: int | None = None, test: list[int] | None = None) -> Path:
    """A dataset folder with the same images, of which fewer are trained on, or others are tested on.

    Args:
        data: the whole dataset folder.
        folder: folder to make, unless it is there.
        num_train: training images of fold 0 that stay.
        test: ids of the images of the new test set.
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


def draw_curve(by_size: dict[int, dict[str, float]], path: Path) -> None:
    """AP50 against the number of training images."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, label in (
        ("part_AP50", "parts"),
        ("rare_part_AP50", "rarest third of parts"),
        ("implant_AP50", "implants"),
    ):
        axes.plot(list(by_size), [metrics[key] for metrics in by_size.values()], marker="o", label=label)
    axes.set(xscale="log", xlabel="training images", ylabel="AP50, percent", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on every subset, evaluate, and draw the worst."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train = sum(len(fold) for fold in load_folds(data)["folds"][1:])
    sizes = [size for size in arguments.sizes if size < num_train] + [num_train]
    truth = runs.ground_truth(data, "test")
    curve = {}

    def training(size: int) -> Path:
        epochs = arguments.passes / size
        lengths = (
            *("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", epochs / 12, "SOLVER.EVAL_EPOCHS", epochs / 8),
            *("TEST.DETECTIONS_PER_IMAGE", 300),
        )
        smaller = subset(data, arguments.work / f"train_{size}", num_train=size)
        options = (*lengths, *runs.HEAD, *arguments.options)
        return runs.train(arguments.work / f"run_{size}", smaller, options, arguments.config)

    # The whole set first: it is the one that counts.
    runs.in_parallel(arguments.jobs, [partial(training, size) for size in reversed(sizes)])
    for size in sizes:
        run = training(size)
        found = runs.detect(run, arguments.work / f"train_{size}", "test")
        curve[size] = {
            "metrics": runs.metrics(truth, found),
            "axes": runs.axis_accuracy(truth, found),
            "all": without_nan(coco_metrics(truth, found)),
        }
    worst = worst_images(truth, found, WORST)
    drawn = subset(data, arguments.work / "worst_data", test=worst)
    results = run / "test" / "coco_instances_results.json"
    pictures = draw_dataset(drawn, arguments.work / "worst", results, part="test", min_score=0.3)
    if not arguments.smoke:
        rank = {image_id: place for place, image_id in enumerate(worst)}
        pictures.sort(key=lambda path: rank[int(path.name.partition("_")[0])])
        write_sheet(pictures[:SHOWN], RESULTS / "head_curve_worst.jpg")
        draw_curve({size: of_size["metrics"] for size, of_size in curve.items()}, RESULTS / "head_curve.png")
    return {
        "num_images": arguments.images,
        "image_passes": arguments.passes,
        "config": arguments.config,
        "options": [*runs.HEAD, *arguments.options],
        "worst_image_ids": worst,
        "by_training_images": curve,
    }


def main() -> None:
    """Train what is missing, then write the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/head_curve"), help="data, runs and pictures")
    parser.add_argument("--images", type=int, default=5572, help="size of the phantom")
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000], help="subsets; the whole set comes last")
    parser.add_argument("--passes", type=int, default=40000, help="images that each training sees")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--config", default=runs.CONFIG)
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … of the best setting")
    arguments = parser.parse_args()
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            arguments.work, arguments.images, arguments.sizes = Path(folder), 40, [8]
            arguments.passes, arguments.options = 24, list(runs.SMOKE)
            print(measure(arguments))
            print("pictures:", len(list((arguments.work / "worst").glob("*.png"))))
    else:
        write_result("head_curve", measure(arguments))


if __name__ == "__main__":
    main()
