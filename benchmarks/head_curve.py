"""What more training images give: growing subsets of those of fold 0, each for the same number of image passes.

    python benchmarks/head_curve.py [--work DIR] [--images N] [--passes P] [--sizes …] [--seeds …] [--jobs J]
                                    [--config FILE] [KEY VALUE …]
    python benchmarks/head_curve.py --smoke

All are evaluated on the test set. An interrupted run goes on when it is started again with the same --work. Runs that
are in ``results/head_curve.json`` already, of the same settings, stay under their commits and are not trained again:
so one machine can add sizes and seeds to what another has measured.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import head_runs as runs
from _fingerprint import fingerprint
from _record import RESULTS
from _resumed import commit_of
from matplotlib.figure import Figure

from implantdet.data.idd import ANNOTATIONS, FOLDS, IMAGES, load_folds, write_json
from implantdet.phantom.generate import GENERATOR


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


def draw_curve(curve: dict[int, dict[str, Any]], path: Path) -> None:
    """AP50 against the number of training images: mean and range over the seeds."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for key, label in (
        ("part_AP50", "parts"),
        ("rare_part_AP50", "rarest third of parts"),
        ("implant_AP50", "implants"),
    ):
        values = [[metrics[key] for metrics in point["by_seed"].values()] for point in curve.values()]
        (line,) = axes.plot(list(curve), list(map(mean, values)), marker="o", label=label)
        span = list(map(min, values)), list(map(max, values))
        axes.fill_between(list(curve), *span, color=line.get_color(), alpha=0.2)
    axes.set(xscale="log", xlabel="training images", ylabel="AP50, percent", ylim=(0, 100))
    axes.set_xticks(list(curve), [str(size) for size in curve])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, and evaluate."""
    data = runs.make_phantom(arguments.work / "phantom", arguments.images)
    num_train = runs.num_train(data)
    sizes = [size for size in arguments.sizes if size < num_train] + [num_train]
    smaller = {size: subset(data, arguments.work / f"train_{size}", num_train=size) for size in sizes}
    truth = runs.ground_truth(data, "test")

    def training(size: int, seed: int) -> Path:
        length = runs.lengths(arguments.passes / size)
        options = (*length, "TEST.DETECTIONS_PER_IMAGE", 300, "SEED", seed, *arguments.options)
        run = runs.train(arguments.work / f"run_{size}_seed{seed}", smaller[size], options, arguments.config)
        runs.detect(run, smaller[size], "test")
        return run

    settings = settings_of(arguments)
    by_run = {} if arguments.smoke else recorded(settings)
    points = {
        (size, seed): partial(training, size, seed)
        for seed in arguments.seeds
        for size in reversed(sizes)
        if (size, seed) not in by_run
    }
    runs.in_parallel(arguments.jobs, list(points.values()))
    for key, train in points.items():
        run = train()
        by_run[key] = runs.metrics(truth, runs.detections(run / "test")), commit_of(run)
    curve: dict[int, dict[str, Any]] = {}
    for (size, seed), (metrics, commit) in sorted(by_run.items()):
        point = curve.setdefault(size, {"by_seed": {}, "commits": {}})
        point["by_seed"][seed], point["commits"][seed] = metrics, commit
    for (_, smaller_point), (_, point) in pairwise(curve.items()):
        point["difference"] = runs.paired_differences(point["by_seed"], smaller_point["by_seed"])
    if not arguments.smoke:
        draw_curve(curve, RESULTS / "head_curve.png")
    return {**settings, "by_training_images": curve}


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that a run depends on beside its size and seed."""
    return {
        "num_images": arguments.images,
        "generator": GENERATOR,
        "config": arguments.config,
        "configs": fingerprint(arguments.config, arguments.options),
        "options": list(map(str, arguments.options)),
        "image_passes": arguments.passes,
    }


def recorded(settings: dict[str, Any]) -> dict[tuple[int, int], tuple[dict[str, float], str]]:
    """(size, seed) → metrics and commit of the runs of the result file, if it is of these settings."""
    path = RESULTS / "head_curve.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(found.get(key) != value for key, value in settings.items()):
        return {}
    return {
        (int(size), int(seed)): (metrics, point["commits"][seed])
        for size, point in found["by_training_images"].items()
        for seed, metrics in point["by_seed"].items()
    }


def main() -> None:
    """Train what is missing, then write the curve."""
    parser = runs.parser_of(__doc__, "head_curve", images=5572)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000], help="subsets; the whole set comes last")
    parser.add_argument("--passes", type=int, default=4000, help="images that each training sees")
    parser.add_argument("--config", default="configs/idd_tiny.yaml")
    runs.report("head_curve", parser.parse_args(), measure, sizes=[8], passes=24)


if __name__ == "__main__":
    main()
